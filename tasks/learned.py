"""A task whose reward is learned: a model or a judge scores the responses, and the task's own verdict is held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import Response, Scorer, SingleTurnTask, Split, Task
from harness.core.types import FinishReason, Grade, Prompt

LEARNED, TRUE = "learned", "true"


class Learned(SingleTurnTask):
    """Another task's prompts, rewarded by a `Scorer`.

    The score is what the policy is trained on; `correct`, and with it every held-out score, stays the verdict of the
    task's own grader, which no algorithm may read. Both stand side by side as the components `learned` and `true`, so
    that a reward that rises while the true score falls (over-optimisation) is seen. A response that the scorer cannot
    score is `failed`: it has no reward and abstains, and the failures are counted.
    """

    def __init__(self, base: SingleTurnTask, scorer: Scorer) -> None:
        self._base, self._scorer = base, scorer
        self.info = replace(
            base.info,
            reward_range=scorer.reward_range,
            graded=True,
            credit=False,
            components=(LEARNED, TRUE),
            verdict_held_out=True,
            description=f"{base.info.description}, rewarded by {scorer.name}; its own verdict is held out",
            data_sha256=hashlib.sha256(f"{base.info.data_sha256} {scorer.sha256}".encode()).hexdigest(),
        )

    @property
    def verifier(self) -> Task:
        return self._base.verifier

    def item(self, split: Split, index: int) -> Prompt:
        return self._base.item(split, index)

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        return self.grade_many([Response(prompt=prompt, text=text, finish_reason=finish_reason)])[0]

    def grade_many(self, responses: Sequence[Response]) -> list[Grade]:
        true, scores = self._base.grade_many(responses), self._scorer.score(responses)
        return [self._joined(t, s.value, s.why) for t, s in zip(true, scores, strict=True)]

    def _joined(self, true: Grade, value: float | None, why: str) -> Grade:
        low, high = self.info.reward_range
        if value is not None and not low <= value <= high:  # NaN is not inside either
            value, why = None, f"the score {value:g} lies outside [{low:g}, {high:g}]"
        parts = {LEARNED: math.nan if value is None else value, TRUE: true.score}
        if value is None:
            return replace(true, score=math.nan, components=parts, failed=True, why=f"no score: {why}", credit=())
        return replace(true, score=value, components=parts, credit=())


def learned(base: Task, scorer: Scorer) -> Learned:
    """The task with a learned reward; UsageError where its responses are more than one turn."""
    if not isinstance(base, SingleTurnTask):
        raise UsageError(f"reward {scorer.name}", f"task {base.info.name} has several turns", "a single-turn task")
    return Learned(base, scorer)


def check_options(reward: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuses the options of other kinds of rewards."""
    for name in options:
        if name not in known:
            raise UsageError(f"{name} with --reward {reward}", "this kind of reward does not read it",
                             f"one of: {', '.join(known)}")  # fmt: skip
