"""`reasoning_gym:<generator>`: endless disjoint items and the generator's own verdicts."""

from __future__ import annotations

import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Split
from harness.core.registry import build_task
from tasks.reasoning_gym import NOT_SELF_TESTABLE, divisors, generators
from tasks.splits import split_of

pytest.importorskip("reasoning_gym", reason="the extra `reasoning-gym` is not installed")

SMALL = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_a_pure_function_and_lie_in_their_split(split: Split) -> None:
    one, two = build_task("reasoning_gym:chain_sum", SMALL), build_task("reasoning_gym:chain_sum", SMALL)
    prompts = [one.item(split, i) for i in range(30)]
    assert prompts == [two.item(split, i) for i in reversed(range(30))][::-1]
    assert all(split_of(prompt.messages[0]["content"]) == split for prompt in prompts)
    assert one.item(split, 1 << 50).id == two.item(split, 1 << 50).id


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "gsm_symbolic", "word_sorting", "list_functions"])
@pytest.mark.parametrize("extract", [None, "tags"])
def test_gold_is_correct_and_another_items_gold_is_not(name: str, extract: str | None) -> None:
    task: Any = build_task(f"reasoning_gym:{name}", {"extract": extract} if extract else {})
    prompts = [task.item("test", i) for i in range(12)]
    for prompt, other in pairwise(prompts):
        grade = task.grade(prompt, task.gold(prompt), "stop")
        assert grade.correct
        assert grade.score == 1.0
        if other.answer["answer"] != prompt.answer["answer"]:
            assert not task.grade(prompt, task.gold(other), "stop").correct


def test_numbers_are_read_from_the_end_and_must_match_exactly() -> None:
    task: Any = build_task("reasoning_gym:chain_sum", SMALL)
    assert task.extract == "last_number"
    prompt = task.item("train", 0)
    gold = prompt.answer["answer"]
    assert task.grade(prompt, f"1 + 1 is 2, so the answer is {gold}.0.", "stop").score == 1.0
    for text in (f"{gold}1", f"{gold} or 999", "none", ""):
        assert task.grade(prompt, text, "stop").score == 0.0


def test_partial_credit_is_a_score_but_not_correct() -> None:
    task: Any = build_task("reasoning_gym:chain_sum", SMALL | {"extract": "all"})
    prompt = task.item("train", 0)
    grade = task.grade(prompt, f"It is {prompt.answer['answer']}", "stop")
    assert 0 < grade.score < 1
    assert not grade.correct
    assert task.info.graded


def test_the_instruction_follows_the_question() -> None:
    plain, told = (
        build_task("reasoning_gym:chain_sum", SMALL | extra) for extra in ({}, {"instruction": "Only the number."})
    )
    content = plain.item("train", 5).messages[0]["content"]
    assert told.item("train", 5).messages[0]["content"] == f"{content}\nOnly the number."
    assert told.item("train", 5).id == plain.item("train", 5).id


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("chan_sum", {}, "did you mean chain_sum"),
        ("", {}, "choose one of"),
        ("chain_sum", {"min_term": 2}, r"did you mean min_terms.*valid: .*extract"),
        ("chain_sum", {"seed": 3}, "no such parameter"),
        ("chain_sum", {"extract": "first"}, "last_number, all, tags"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "max_terms must be >= min_terms"),
    ],
)
def test_mistakes_are_named(name: str, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s){expected}"):
        build_task(f"reasoning_gym:{name}", params)


def test_divisors_are_those_of_the_package_in_its_order() -> None:
    """Same list, so the generator draws the same items; but not by trial division up to 10^12."""
    build_task("reasoning_gym:chain_sum", SMALL)
    source = Path(str(find_spec("reasoning_gym.arithmetic.basic_arithmetic").origin)).read_text()  # type: ignore[union-attr]
    theirs: dict[str, Any] = {}
    start = source.index("def find_common_divisors")
    exec(source[start : source.index("\n\n\n", start)], theirs)
    for a, b in ((12, 18), (36, 36), (0, 0), (7, 0), (-48, 180), (1, 9), (3600, 0)):
        assert divisors(a, b) == theirs["find_common_divisors"](a, b)
    assert len(divisors(2**40 * 3**20, 0)) == 41 * 21


def test_a_generator_that_once_took_hours_gives_items() -> None:
    task = build_task("reasoning_gym:basic_arithmetic", {})
    start = time.monotonic()
    assert len({task.item(split, i).id for split in SPLITS for i in range(70)}) > 200
    assert time.monotonic() - start < 30


def test_generators_known_not_to_be_self_testable_exist_and_say_so() -> None:
    assert set(generators()) >= NOT_SELF_TESTABLE
    assert len(generators()) > 100
    for name in ("game_of_life_halting", "n_queens"):
        assert not build_task(f"reasoning_gym:{name}", {}).info.self_testable
