"""`chain`: a running sum modulo 10, the task of the embedded model.

Prompt `8 +3 +5 -2 ?`. Three answer styles, all ending `# value`:
direct `# 4` | scratch `+3 1 +5 6 -2 4 # 4` | verbose `+3 1 ! +5 6 ! -2 4 ! # 4`.
With k operations (uniform in min_ops..max_ops) an answer has 3, 2k+3 or 3k+3 tokens, end token included.

`chain-long` is the same with 63 to 169 operations, so that an answer that takes every step has 129 to 510 tokens.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from harness.core.errors import UsageError
from harness.core.ports import SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.types import Credit, FinishReason, Grade, Message, Prompt
from tasks.params import check_bool, check_choice, check_int, check_known
from tasks.splits import digest, split_of_digest

Style = Literal["direct", "scratch", "verbose"]
STYLES: tuple[Style, ...] = get_args(Style)

_OPS = ("+1", "+2", "+3", "+4", "+5", "-1", "-2", "-3", "-4", "-5")
_OP_OF_DIGIT = {str(i): f" {op}" for i, op in enumerate(_OPS)}
_VALUE_OF_DIGIT = {str(i): int(op) for i, op in enumerate(_OPS)}
_STEP = re.compile(r"([+-]\d(?: \d)?)(?: !)?")
_ATTEMPTS = 8  # items drawn from one hash; a test item needs 10 attempts on average
_MAX_OPS = 512
LONG = (63, 169)  # operations of chain-long: 2 * 63 + 3 = 129 and 3 * 169 + 3 = 510 tokens
TEMPTATION = 0.5  # what the longest response gains with reward="tempting"
TEMPTED = 512  # words at which it has gained all of it

Reward = Literal["exact", "graded", "tempting"]


class ChainTask(SingleTurnTask):
    """Endless, disjoint splits; item `(split, index)` is a pure function of its arguments.

    `reward="exact"`: 1 if the text after the last `#` is the value and the response ended by itself, else 0.

    `reward="graded"`, in [-1, 1], threshold 0.5, with n = words of the response and x = min(1, n / (3 max_ops + 2)):
    right: 0.75 + 0.25 cos(pi x), from 1 (short) down to 0.5 (long); wrong: -0.75 - 0.25 cos(pi x), from -1 (short)
    up to -0.5; without an answer or cut off: -1. The shape is that of Phi-4-reasoning's length-aware reward
    (arXiv 2504.21318), on which GFPO was trained.

    `reward="tempting"`, in [0, 1.5], threshold 1: 1 if right, else 0, plus 0.5 min(1, n / 512) either way. Length pays
    and does not help, so that a policy inflates its responses where nothing stops it.

    Credit (`credit=True`): every step `op value` (with its `!`) before the answer is one span; 1 if the i-th step
    holds the i-th operation and the right running sum, else 0. Direct answers have no steps.
    """

    def __init__(
        self,
        min_ops: int = 3,
        max_ops: int = 9,
        reward: Reward = "exact",
        credit: bool = True,
        name: str = "chain",
    ) -> None:
        check_int(name, "min_ops", min_ops, 1, _MAX_OPS)
        check_int(name, "max_ops", max_ops, 1, _MAX_OPS)
        check_choice(name, "reward", reward, get_args(Reward))
        check_bool(name, "credit", credit)
        if min_ops > max_ops:
            raise UsageError(
                f"task {name}: min_ops={min_ops}, max_ops={max_ops}", "the range is empty", "min_ops <= max_ops"
            )
        if sum(10 ** (k + 1) for k in range(min_ops, max_ops + 1)) < 1000:
            raise UsageError(
                f"task {name}: min_ops={min_ops}, max_ops={max_ops}",
                "only 100 different prompts exist, too few for three splits",
                "max_ops of 2 or more",
            )
        self._min_ops, self._span = min_ops, max_ops - min_ops + 1
        self._reward, self._credit = reward, credit
        self._longest = 3 * max_ops + 2  # words of the longest answer that takes every step once
        self._bytes = (max_ops * 10) // 24 + 8  # > log2(10^(max_ops + 1) * span) bits, so the draw has no visible bias
        self.info = TaskInfo(
            name=name,
            reward_range={"exact": (0.0, 1.0), "graded": (-1.0, 1.0), "tempting": (0.0, 1.0 + TEMPTATION)}[reward],
            threshold=1.0 if reward == "tempting" else 0.5,
            graded=reward != "exact",
            credit=credit,
            sizes={"train": None, "validation": None, "test": None},
            description=f"running sum modulo 10 with {min_ops} to {max_ops} operations",
        )

    def item(self, split: Split, index: int) -> Prompt:
        """The first of a stream of candidates, keyed by (split, index), whose content belongs to the split."""
        width, low, span = self._bytes, self._min_ops, self._span
        block = 0
        while True:
            bits = hashlib.shake_128(b"%b:%d:%d" % (split.encode(), index, block)).digest(width * _ATTEMPTS)
            for offset in range(0, width * _ATTEMPTS, width):
                rest, extra = divmod(int.from_bytes(bits[offset : offset + width], "little"), span)
                num_ops = low + extra
                digits = str(rest)[-num_ops - 1 :].zfill(num_ops + 1)
                content = digits[0] + "".join(map(_OP_OF_DIGIT.__getitem__, digits[1:])) + " ?"
                key = digest(content)
                if split_of_digest(key) == split:
                    total = int(digits[0]) + sum(map(_VALUE_OF_DIGIT.__getitem__, digits[1:]))
                    message: Message = {"role": "user", "content": content}
                    return Prompt(
                        id=key[8:].hex(), messages=(message,), answer=str(total % 10), difficulty=f"k={num_ops}"
                    )
            block += 1

    def gold(self, prompt: Prompt) -> str:
        """A response that is graded correct."""
        return f"# {prompt.answer}"

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The three styles are right; another value, a value without the mark, and nothing are wrong."""
        other = (int(prompt.answer) + 1) % 10
        right = [(cold_start_answer(prompt, style), True) for style in STYLES]
        return [*right, (f"# {other}", False), (prompt.answer, False), ("", False)]

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        body, mark, tail = text.rpartition("#")
        extracted = tail.strip() if mark else None
        if finish_reason != "stop":
            correct, why = False, "cut off"
        elif not extracted:
            correct, why = False, "no answer"
        else:
            correct = extracted == prompt.answer
            why = "right" if correct else "wrong"
        return Grade(
            score=self._score(text, why),
            correct=correct,
            extracted=extracted,
            why=why,
            credit=_credits(prompt.messages[-1]["content"], body) if self._credit else (),
        )

    def _score(self, text: str, why: str) -> float:
        right = float(why == "right")
        if self._reward == "exact":
            return right
        if self._reward == "tempting":
            return right + TEMPTATION * min(1.0, len(text.split()) / TEMPTED)
        wave = 0.25 * math.cos(math.pi * min(1.0, len(text.split()) / self._longest))
        return {"right": 0.75 + wave, "wrong": -0.75 - wave}.get(why, -1.0)


@lru_cache(maxsize=4096)
def _steps(question: str) -> tuple[str, ...]:
    """`8 +3 +5 -2 ?` -> `("+3 1", "+5 6", "-2 4")`."""
    start, *ops = question.split()[:-1]
    value, steps = int(start), []
    for op in ops:
        value = (value + int(op)) % 10
        steps.append(f"{op} {value}")
    return tuple(steps)


@lru_cache(maxsize=16384)
def _credit(start: int, end: int, right: bool) -> Credit:
    return Credit(turn=0, span=(start, end), name="step", reward=float(right))


def _credits(question: str, body: str) -> tuple[Credit, ...]:
    if not body:
        return ()
    steps = _steps(question)
    last = len(steps)
    return tuple(
        [_credit(*found.span(), i < last and found[1] == steps[i]) for i, found in enumerate(_STEP.finditer(body))]
    )


def cold_start_answer(prompt: Prompt, style: Style) -> str:
    """The right answer to a prompt in one of the three styles, the target of supervised training."""
    steps = _steps(prompt.messages[-1]["content"])
    end = f"# {prompt.answer}"
    if style == "direct":
        return end
    return " ".join([*(f"{step} !" if style == "verbose" else step for step in steps), end])


def build(argument: str = "", **params: Any) -> ChainTask:
    """`chain` with min_ops, max_ops, reward ("exact", "graded" or "tempting") and credit."""
    return _built("chain", argument, params)


def build_long(argument: str = "", **params: Any) -> ChainTask:
    """`chain-long` with the parameters of `chain`; 63 to 169 operations where none are given."""
    return _built("chain-long", argument, {"min_ops": LONG[0], "max_ops": LONG[1], **params})


def _built(name: str, argument: str, params: Mapping[str, Any]) -> ChainTask:
    if argument:
        raise UsageError(f"task {name}:{argument}", "it takes no argument after a colon", "parameters, e.g. max_ops=9")
    check_known(name, params, ("min_ops", "max_ops", "reward", "credit"))
    return ChainTask(**params, name=name)


register_task("chain", build)
register_task("chain-long", build_long)
