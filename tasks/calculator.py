"""`calculator`: a running sum modulo 10 with a tool that adds up a few operations at a time.

Prompt `8 +3 +5 -2 ?` as in `chain`. A turn `! 8 +3 +5` calls the tool, which replies `6`; a turn `# 4` is the answer
and ends the episode. A call that the tool cannot read is answered with `!`. With `style="text"` the same in English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.core.errors import UsageError
from harness.core.ports import Split, Task, TaskInfo
from harness.core.registry import register_task
from harness.core.types import Done, FinishReason, Grade, Message, Observation, Prompt
from tasks.chain import ChainTask
from tasks.params import check_bool, check_choice, check_int, check_known, check_turn_reward

Style = Literal["words", "text"]
_CALL = re.compile(r"!\s*(\d)((?:\s*[+-]\s*\d)+)\s*$")
_ANSWER = re.compile(r"#\s*(\d+)\s*$")
_OPERATION = re.compile(r"([+-])\s*(\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SumState:
    """An episode: the value so far by right calls, what is still to be added, and what was earned."""

    value: int
    todo: tuple[int, ...]
    answer: str
    turn: int = 0
    earned: float = 0.0


class CalculatorTask(Task):
    """Score 1 for the right answer within `turns` turns, else what the turns earned.

    A call of at most `call_ops` operations that continues the sum where the last right call left it earns
    `turn_reward`; the answer earns the rest of 1. `feedback=False` does not tell an unreadable call from a value: the
    tool stays silent with `?`.
    """

    def __init__(
        self,
        min_ops: int = 3,
        max_ops: int = 6,
        call_ops: int = 3,
        turns: int = 5,
        turn_reward: float = 0.1,
        feedback: bool = True,
        style: Style = "words",
    ) -> None:
        check_choice("calculator", "style", style, ("words", "text"))
        check_int("calculator", "call_ops", call_ops, 1, 512)
        check_int("calculator", "turns", turns, 2, 32)
        check_turn_reward("calculator", turn_reward, turns)
        check_bool("calculator", "feedback", feedback)
        self._sums = ChainTask(min_ops=min_ops, max_ops=max_ops, credit=False)
        self._call_ops, self._turns, self._reward = call_ops, turns, turn_reward
        self._feedback, self._style = feedback, style
        self.info = TaskInfo(
            name="calculator",
            reward_range=(0.0, 1.0),
            threshold=1.0,
            graded=turn_reward > 0,
            components=("answer", "calls"),
            max_turns=turns,
            sizes=self._sums.info.sizes,
            description=f"running sum modulo 10 of {min_ops} to {max_ops} operations with a tool that adds up to "
            f"{call_ops} of them, within {turns} turns",
        )

    def item(self, split: Split, index: int) -> Prompt:
        prompt = self._sums.item(split, index)
        question = prompt.messages[-1]["content"]
        message: Message = {"role": "user", "content": self._shown(question)}
        return replace(prompt, messages=(message,), answer=(question, prompt.answer))

    def gold(self, prompt: Prompt) -> str:
        return f"# {prompt.answer[1]}"

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The value is right and another one is wrong; a call goes on."""
        return [(self.gold(prompt), True), (f"# {(int(prompt.answer[1]) + 1) % 10}", False)]

    def start(self, prompt: Prompt) -> SumState:
        question, answer = prompt.answer
        first, *ops = question.split()[:-1]
        return SumState(value=int(first), todo=tuple(int(op) for op in ops), answer=answer)

    def step(self, state: SumState, text: str, finish_reason: FinishReason) -> tuple[SumState, Observation | Done]:
        state = replace(state, turn=state.turn + 1)
        ended = finish_reason == "stop"
        answer = _ANSWER.search(text) if ended else None
        if answer is not None:
            right = answer[1] == state.answer
            return state, _done(state, answer[1], right=right, why="right" if right else "wrong")
        called = self._called(text) if ended else None
        earned = 0.0
        if called is not None and called == (state.value, state.todo[: len(called[1])]):
            earned = self._reward
            state = replace(
                state, value=_total(*called), todo=state.todo[len(called[1]) :], earned=state.earned + earned
            )
        if state.turn == self._turns:
            return state, _done(state, None, right=False, why="no answer" if ended else "cut off")
        said = str(_total(*called)) if called is not None else "!" if self._feedback else "?"
        message: Message = {"role": "user", "content": said}
        return state, Observation(messages=(message,), reward=earned)

    def calls(self, prompt: Prompt) -> list[str]:
        """The calls that lead to the answer, one per turn."""
        state, found = self.start(prompt), []
        while state.todo:
            part = state.todo[: self._call_ops]
            found.append(f"! {state.value} {' '.join(f'{op:+d}' for op in part)}")
            state = replace(state, value=_total(state.value, part), todo=state.todo[len(part) :])
        return found

    def _called(self, text: str) -> tuple[int, tuple[int, ...]] | None:
        """Start value and operations of a call; None where the tool cannot do it."""
        found = _CALL.search(text)
        if found is None:
            return None
        ops = tuple(int(f"{sign}{digit}") for sign, digit in _OPERATION.findall(found[2]))
        return (int(found[1]), ops) if len(ops) <= self._call_ops else None

    def _shown(self, question: str) -> str:
        if self._style == "words":
            return question
        return (
            f"Compute {question.removesuffix(' ?')} and give the last digit of the sum, from 0 to 9. A tool adds up to "
            f"{self._call_ops} numbers to a digit and replies with the last digit: write `! 8 +3 -2` on a line of its "
            "own at the end of your message to call it. When you know the result, write `# result`, e.g. `# 4`."
        )


def _total(value: int, ops: Sequence[int]) -> int:
    return (value + sum(ops)) % 10


def _done(state: SumState, extracted: str | None, *, right: bool, why: str) -> Done:
    parts = {"answer": 1.0 - state.earned if right else 0.0, "calls": state.earned}
    score = 1.0 if right else state.earned
    return Done(grade=Grade(score=score, correct=right, components=parts, extracted=extracted, why=why))


def build(argument: str = "", **params: Any) -> CalculatorTask:
    """`calculator` with min_ops, max_ops, call_ops, turns, turn_reward, feedback and style."""
    if argument:
        raise UsageError(
            f"task calculator:{argument}", "it takes no argument after a colon", "parameters, e.g. turns=5"
        )
    check_known("calculator", params, ("min_ops", "max_ops", "call_ops", "turns", "turn_reward", "feedback", "style"))
    return CalculatorTask(**params)


register_task("calculator", build)
