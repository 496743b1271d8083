"""A task graded by the user's own function: `--reward my.py:score`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Split, Task
from harness.core.types import FinishReason, Grade, Prompt
from tasks.workers import Called, StartError, Workers

PARAMS = ("reward_function", "reward_seconds", "reward_range", "reward_threshold")
_SHOWN = 200  # characters of a response that stand for what was read, where the function does not say


class Rewarded(SingleTurnTask):
    """Another task's prompts, graded by `score(prompt, response, answer) -> float | dict`.

    The function runs in worker processes under a time limit. `prompt` is the text of the last user message, `answer`
    the task's stored answer as plain data. A dict names the parts of the reward: its `score` is the reward, else the
    sum of its numbers is; every other number is a component; a text under `extracted` is the answer that was read.
    `correct` means a reward of at least the threshold. An exception, a call beyond the time limit and a value outside
    the declared range are `failed`: the row has no reward and abstains, and the failures are counted.
    """

    def __init__(
        self, base: SingleTurnTask, file: Path, function: str, seconds: float, low: float, high: float, threshold: float
    ) -> None:
        self._base, self._low, self._high, self._threshold = base, low, high, threshold
        self._workers = Workers(file, function, limit_s=seconds)
        self.info = base.info  # until the components are known
        sha256 = hashlib.sha256(f"{base.info.data_sha256} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
        self.info = replace(
            base.info,
            reward_range=(low, high),
            threshold=threshold,
            graded=True,
            credit=False,
            components=self._components(f"{file}:{function}"),
            description=f"{base.info.description}, rewarded by {file.name}:{function}",
            data_sha256=sha256.hexdigest(),
        )

    def item(self, split: Split, index: int) -> Prompt:
        return self._base.item(split, index)

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        return self.grade_many([Response(prompt=prompt, text=text, finish_reason=finish_reason)])[0]

    def grade_many(self, responses: Sequence[Response]) -> list[Grade]:
        called = self._call([(r.prompt, r.text) for r in responses])
        return [self._verdict(r.text, c) for r, c in zip(responses, called, strict=True)]

    def _call(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Called]:
        return self._workers.map([(p.messages[-1]["content"], text, p.answer) for p, text in pairs])

    def _verdict(self, text: str, called: Called) -> Grade:
        if called.failure is not None:
            return _failed(f"{'time limit' if called.failure == 'timeout' else 'error'}: {called.why}")
        parts = called.value if isinstance(called.value, Mapping) else {"score": called.value}
        extracted = parts.get("extracted", text.strip()[:_SHOWN] or None)
        numbers = {name: value for name, value in parts.items() if name != "extracted"}
        odd = next((name for name, value in numbers.items() if not isinstance(value, (bool, int, float))), None)
        if odd is not None or not numbers:
            return _failed(f"error: {odd or 'its result'} is {type(numbers.get(odd or '')).__name__}, not a number")
        score = float(numbers.pop("score")) if "score" in numbers else float(sum(numbers.values()))
        if not (math.isfinite(score) and self._low <= score <= self._high):
            return _failed(f"error: the reward {score:g} lies outside [{self._low:g}, {self._high:g}]")
        correct = score >= self._threshold
        why = "right" if correct else "wrong" if score == self._low else "partly right"
        components = {name: float(value) for name, value in numbers.items()}
        return Grade(score=score, correct=correct, components=components, extracted=extracted, why=why)

    def _components(self, name: str) -> tuple[str, ...]:
        """Names of the parts of the reward, called on the first question; what cannot work stops here."""
        item = self._base.item("train", 0)
        try:
            called = self._call([(item, text) for text in (self._base.gold(item), "") if text is not None])
        except StartError as error:
            raise UsageError(
                f"reward {name}", f"it cannot be loaded: {error}", "my.py:score, (prompt, response, answer) -> float"
            ) from None
        grades = [self._verdict("", c) for c in called]
        good = [grade for grade in grades if not grade.failed]
        if not good:
            raise UsageError(
                f"reward {name}",
                f"it gives no reward for the first question: {grades[0].why}",
                "a function (prompt, response, answer) -> float or dict of floats; -t reward_range=LOW,HIGH",
            )
        return tuple(sorted(good[0].components))


def _failed(why: str) -> Grade:
    return Grade(score=math.nan, correct=False, why=why, failed=True)


def rewarded(base: Task, reward_function: Any, **options: Any) -> Rewarded:
    """The task with the user's reward; options are those of `PARAMS` as given on the command line."""
    if not isinstance(base, SingleTurnTask):
        raise UsageError(f"reward {reward_function}", f"task {base.info.name} has several turns", "a single-turn task")
    place, colon, function = str(reward_function).rpartition(":")
    file = Path(place).expanduser()
    if not colon or not function.isidentifier() or file.suffix != ".py":
        raise UsageError(f"reward {reward_function!r}", "it names no function of a file", "--reward my.py:score")
    if not file.is_file():
        raise UsageError(f"reward {reward_function}", f"there is no file {place}", "the path of a Python file")
    seconds = _number("reward_seconds", options.get("reward_seconds", 10))
    if not 0 < seconds <= 3600:
        raise UsageError(f"reward_seconds={seconds:g}", "no time limit", "seconds per response, e.g. 10")
    low, high = _range(options.get("reward_range", "0,1"))
    threshold = _number("reward_threshold", options.get("reward_threshold", high))
    if not low < threshold <= high:
        raise UsageError(
            f"reward_threshold={threshold:g}", f"`correct` is never or always so in [{low:g}, {high:g}]",
            "a reward in the range, above its lower end",
        )  # fmt: skip
    return Rewarded(base, file, function, seconds, low, high, threshold)


def _range(given: Any) -> tuple[float, float]:
    parts = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else [given]
    if len(parts) != 2:
        raise UsageError(f"reward_range={given!r}", "not two numbers", "e.g. -t reward_range=-1,1")
    low, high = (_number("reward_range", part) for part in parts)
    if not low < high:
        raise UsageError(f"reward_range={given!r}", "the range is empty", "e.g. -t reward_range=-1,1")
    return low, high


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name}={value!r}", "not a finite number", f"e.g. {name}=1")
    return number
