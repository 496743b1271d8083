"""A single-turn task with several attempts: `-t attempts=3`. A wrong answer may be answered with what was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Split, Task, Turn
from harness.core.types import Done, FinishReason, Grade, Message, Observation, Prompt
from tasks.params import check_bool, check_int

PARAMS = ("attempts", "attempt_feedback")
_SHOWN = 200  # characters of an answer that are repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Which question, and how many answers were given."""

    prompt: Prompt
    taken: int = 0


class Retried(Task):
    """Another task's prompts; after an answer that is not correct the policy is asked again, up to `attempts` times.

    The last answer's grade is the episode's. With `attempt_feedback` the next prompt says what was read and what was
    wrong with it (the grade's `why`), else only that the answer is wrong: the switch for feedback as text.
    """

    def __init__(self, base: SingleTurnTask, attempts: int, feedback: bool) -> None:
        self._base, self._attempts, self._feedback = base, attempts, feedback
        told = "with" if feedback else "without"
        self.info = replace(
            base.info, max_turns=attempts, description=f"{base.info.description}, {attempts} attempts {told} feedback"
        )

    @property
    def verifier(self) -> Task:
        return self._base.verifier

    def item(self, split: Split, index: int) -> Prompt:
        return self._base.item(split, index)

    def gold(self, prompt: Prompt) -> str | None:
        return self._base.gold(prompt)

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        return self._base.self_test_cases(prompt)

    def start(self, prompt: Prompt) -> Attempt:
        return Attempt(prompt=prompt)

    def step(self, state: Attempt, text: str, finish_reason: FinishReason) -> tuple[Attempt, Observation | Done]:
        return self.step_many([Turn(state=state, text=text, finish_reason=finish_reason)])[0]

    def step_many(self, turns: Sequence[Turn]) -> list[tuple[Attempt, Observation | Done]]:
        """All answers are graded at once, as the task does it for a rollout."""
        asked = [Response(prompt=t.state.prompt, text=t.text, finish_reason=t.finish_reason) for t in turns]
        grades = self._base.grade_many(asked)
        return [self._answered(t.state, grade) for t, grade in zip(turns, grades, strict=True)]

    def _answered(self, state: Attempt, grade: Grade) -> tuple[Attempt, Observation | Done]:
        state = replace(state, taken=state.taken + 1)
        if grade.correct or grade.failed or state.taken == self._attempts:
            credit = tuple(replace(c, turn=state.taken - 1) for c in grade.credit)
            return state, Done(grade=replace(grade, credit=credit))
        message: Message = {"role": "user", "content": self._said(grade)}
        return state, Observation(messages=(message,))

    def _said(self, grade: Grade) -> str:
        if not self._feedback:
            return "That is not correct. Try again."
        read = f"I read the answer {grade.extracted[:_SHOWN]}. " if grade.extracted else "I could read no answer. "
        return f"That is not correct: {grade.why}. {read}Try again."


def retried(base: Task, attempts: Any, attempt_feedback: Any = True) -> Retried:
    """The task with several attempts; UsageError where that cannot be."""
    check_int(base.info.name, "attempts", attempts, 2, 32)
    check_bool(base.info.name, "attempt_feedback", attempt_feedback)
    if not isinstance(base, SingleTurnTask):
        raise UsageError(f"attempts={attempts}", f"task {base.info.name} has several turns already", "its own turns")
    if base.info.verdict_held_out:
        raise UsageError(
            f"attempts={attempts} with a learned reward",
            "asking again after a wrong answer would show the policy the held-out verdict",
            "attempts with the task's own reward",
        )
    return Retried(base, attempts, attempt_feedback)
