"""`reasoning_gym:<generator>`: procedurally generated, verifiable tasks of the package reasoning-gym (an extra).

Parameters of the generator go through as they are; ours are `extract` and `instruction`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from harness.core.errors import UsageError, near
from harness.core.ports import SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.types import FinishReason, Grade, Message, Prompt
from tasks.graders import as_number, last_number, numerically_equal, tagged
from tasks.params import check_choice, check_known
from tasks.splits import content_id, split_of

_READERS: dict[str, Callable[[str], str | None]] = {"last_number": last_number, "all": str.strip, "tags": tagged}
EXTRACTS = tuple(_READERS)
TAG_INSTRUCTION = "Give your final answer between <answer> and </answer>."
_OWN = ("extract", "instruction")
_RESERVED = ("seed", "size")
# Generators that store no answer, or whose verifier also takes the stored answer of other items (several solutions).
NOT_SELF_TESTABLE = frozenset(
    {"boxnet", "game_of_life_halting", "graph_color", "jugs", "n_queens", "propositional_logic", "puzzle24",
     "rubiks_cube", "rush_hour", "time_intervals"}
)  # fmt: skip
_POOL = 2**31 - 1  # candidates of a generator without a fixed size
_FIXED_POOL = 10_000  # candidates of a generator that builds its items beforehand
_PROBES = 16  # items looked at to choose `extract`
_MAX_ATTEMPTS = 2000


class ReasoningGymTask(SingleTurnTask):
    """Endless, disjoint splits; item `(split, index)` is a pure function: a stream of candidates keyed by it, of which
    the first whose question hashes into the split is taken. Equal questions may come back under other indices.

    `extract="last_number"` (default where the answers are numbers, as in chain_sum): the last number of the response
    must equal the answer; score 1 or 0. `"all"` (default elsewhere): the generator's own verifier reads the whole
    response. `"tags"`: it reads what the last `<answer>...</answer>` holds; the prompt asks for it. With these two the
    score is the verifier's, in [0, 1], partial credit included, and `correct` means full score.
    A response that was cut off is graded as it stands.
    """

    def __init__(self, generator: str, dataset: Any, pool: int, extract: str | None, instruction: str | None) -> None:
        self._dataset, self._pool = dataset, pool
        if extract is None:
            answers = [str(dataset[i * 7919 % pool]["answer"]) for i in range(_PROBES)]
            extract = "last_number" if all(as_number(answer) is not None for answer in answers) else "all"
        self.extract = extract
        self._instruction = TAG_INSTRUCTION if instruction is None and extract == "tags" else instruction
        self.info = TaskInfo(
            name=f"reasoning_gym:{generator}",
            reward_range=(0.0, 1.0),
            threshold=1.0,
            graded=extract != "last_number",
            self_testable=generator not in NOT_SELF_TESTABLE,
            sizes={"train": None, "validation": None, "test": None},
            description=f"reasoning-gym generator {generator}, answer read by {extract}",
        )

    def item(self, split: Split, index: int) -> Prompt:
        for attempt in range(_MAX_ATTEMPTS):
            key = hashlib.blake2b(b"%b:%d:%d" % (split.encode(), index, attempt), digest_size=8).digest()
            entry = self._dataset[int.from_bytes(key, "little") % self._pool]
            question = str(entry["question"])
            if split_of(question) == split:
                text = f"{question}\n{self._instruction}" if self._instruction else question
                message: Message = {"role": "user", "content": text}
                return Prompt(id=content_id(question), messages=(message,), answer=entry)
        raise UsageError(
            f"task {self.info.name}: split {split}",
            f"{_MAX_ATTEMPTS} generated items held none of it: with these parameters there are too few questions",
            "parameters that allow more different questions",
        )

    def gold(self, prompt: Prompt) -> str | None:
        """A response that is graded correct; None where the generator stores none."""
        if prompt.answer["answer"] is None:
            return None
        answer = str(prompt.answer["answer"])
        return f"<answer>{answer}</answer>" if self.extract == "tags" else answer

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The generator's own answer is right, where it has one; words beside the point and nothing are wrong."""
        gold = self.gold(prompt)
        beside = "<answer>no answer</answer>" if self.extract == "tags" else "no answer"
        return [*([(gold, True)] if gold is not None else []), (beside, False), ("", False)]

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        entry = prompt.answer
        extracted = _READERS[self.extract](text) or None
        if extracted is None:
            return Grade(score=0.0, correct=False, why="no answer")
        if self.extract == "last_number":
            correct = numerically_equal(extracted, str(entry["answer"])) or self._verify(extracted, entry) == 1.0
            return Grade(
                score=float(correct), correct=correct, extracted=extracted, why="right" if correct else "wrong"
            )
        score = self._verify(extracted, entry)
        why = "right" if score == 1.0 else "partly right" if score > 0 else "wrong"
        return Grade(score=score, correct=score == 1.0, extracted=extracted, why=why)

    def _verify(self, answer: str, entry: Any) -> float:
        try:
            score = float(self._dataset.score_answer(answer=answer, entry=entry))
        except Exception:  # some verifiers raise on what they cannot parse, which is wrong and no reason to stop
            return 0.0
        return min(1.0, max(0.0, score))


def _spare_pycosat(generator: str) -> None:
    """Lets the package import without pycosat, which is compiled at installation and serves one generator only."""
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        if generator == "zebra_puzzles":
            raise UsageError(
                "task reasoning_gym:zebra_puzzles",
                "it needs the package pycosat, which is not installed here",
                "a C compiler and `pip install pycosat`",
            )
        sys.modules["pycosat"] = types.ModuleType("pycosat")


def divisors(a: int, b: int) -> list[int]:
    """Common divisors in the order of the package's function of this purpose: 1, n, the next one, its partner, ...

    That one tries every number up to the root of n = gcd(a, b), and basic_arithmetic asks it for n beyond 10^20: hours.
    """
    from sympy import divisors as found

    n = math.gcd(a, b)
    small = [int(d) for d in found(n) if d * d <= n]
    return [d for i in small for d in ((i, n // i) if i * i != n else (i,))]


def _spare_trial_division() -> None:
    from reasoning_gym.arithmetic import basic_arithmetic

    basic_arithmetic.find_common_divisors = divisors


def generators() -> list[str]:
    """Names of all generators; none where the package is not installed."""
    _spare_pycosat("")
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return []
    return sorted(DATASETS)


def build(argument: str = "", **params: Any) -> ReasoningGymTask:
    """`reasoning_gym:<generator>` with `extract`, `instruction` and the generator's own parameters."""
    _spare_pycosat(argument)
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(
            f"task reasoning_gym:{argument}",
            f"the package reasoning-gym is missing ({error})",
            "pip install reasoning-gym",
        ) from None
    _spare_trial_division()
    name = f"reasoning_gym:{argument}"
    if argument not in DATASETS:
        raise UsageError(f"task {name}", "no generator of that name", near(argument, DATASETS))
    valid = [field.name for field in dataclasses.fields(DATASETS[argument][1]) if field.name not in _RESERVED]
    check_known(name, params, [*valid, *_OWN])
    extract, instruction = params.pop("extract", None), params.pop("instruction", None)
    if extract is not None:
        check_choice(name, "extract", extract, EXTRACTS)
    given = ", ".join(f"{key}={value!r}" for key, value in params.items()) or "default parameters"
    try:
        dataset, pool = create_dataset(argument, seed=0, size=_PROBES, **params), _POOL
        try:
            dataset[pool - 1]
        except IndexError:
            dataset, pool = create_dataset(argument, seed=0, size=_FIXED_POOL, **params), _FIXED_POOL
            dataset[0]
    except (AssertionError, TypeError, ValueError, KeyError, IndexError) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"task {name}: {given}", f"the generator refuses them: {reason}", "other values") from error
    return ReasoningGymTask(argument, dataset, pool, extract, instruction)


register_task("reasoning_gym", build)
