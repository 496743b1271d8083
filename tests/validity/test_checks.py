"""The judgements of single runs, both ways: what passes, what warns, what is INVALID, and what is no fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.results import Finding
from harness.validity import ORDER, end, first, reasons, start, worst
from harness.validity.limits import GAPS
from harness.validity.start import Ends, LogpGap, PromptCheck, Surprise, VerifierCases

CLEAN = first.FirstBatch(
    responses=256, truncated=0.02, empty=0.0, unreadable=0.1, dead=0.4, dead_wrong=0.3, dead_right=0.1, clones=0.05,
    clones_expected=0.04, spread=True,
)  # fmt: skip
DEAD = {"dead": 1.0, "dead_wrong": 1.0, "dead_right": 0.0, "spread": False}
GAP = LogpGap(tokens=500, mean=1e-7, max=1e-5, k3=1e-12)


def level(finding: Finding) -> str:
    """Its level; whatever is not PASS says what to do."""
    assert finding.why.endswith((".", "!"))
    assert finding.measured
    assert finding.limit
    assert finding.level == "PASS" or finding.advice or finding.check == "clip-range"
    return finding.level


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "PASS"),
        ({"right": 0, "wrong": 0}, "PASS"),
        ({"right": 0}, "PASS"),
        ({"refused": 1}, "INVALID"),
        ({"accepted": 1}, "INVALID"),
        ({"inconsistent": 1}, "INVALID"),
        ({"error": "ValueError: x"}, "INVALID"),
        ({"unspeakable": 3}, "WARN"),
        ({"unspeakable": 16}, "INVALID"),
    ],
)
def test_verifier(changes: dict[str, Any], expected: str) -> None:
    assert level(start.verifier(replace(VerifierCases(right=16, wrong=32), **changes))) == expected


@pytest.mark.parametrize("changes", [{"altered": 1}, {"doubled_start": 1}, {"ended": 1}])
def test_prompt(changes: dict[str, int]) -> None:
    assert level(start.prompt(PromptCheck(prompts=16))) == "PASS"
    assert level(start.prompt(PromptCheck(prompts=16, **changes))) == "WARN"


@pytest.mark.parametrize("changes", [{"without_end": 1}, {"beyond_end": 1}, {"early": 1}])
def test_ends(changes: dict[str, int]) -> None:
    assert level(start.ends(Ends(responses=64))) == "PASS"
    assert level(start.ends(Ends(responses=64, **changes))) == "INVALID"


@pytest.mark.parametrize(
    ("precision", "changes", "expected"),
    [
        ("float32", {}, "PASS"),
        ("float32", {"mean": 2e-6, "max": 3e-5}, "PASS"),  # SmolLM2-135M, measured
        ("float32", {"max": 5e-3}, "WARN"),  # reduced-precision products
        ("float32", {"mean": 0.0129, "max": 0.36}, "INVALID"),  # temperature .95 instead of 1
        ("float32", {"mean": 0.065, "max": 0.77}, "INVALID"),  # a prompt without its first token
        ("bfloat16", {"mean": 0.036, "max": 0.36, "k3": 0.002}, "PASS"),  # SmolLM2-135M, measured
        ("bfloat16", {"mean": 0.08, "max": 1.2, "k3": 0.008}, "WARN"),  # a prompt without its first token
        ("bfloat16", {"mean": 0.244, "max": 3.9, "k3": 0.127}, "INVALID"),  # temperature .7 instead of 1
        ("mixed", {"mean": 0.036, "max": 0.36, "k3": 0.002}, "WARN"),
        ("mixed", {"mean": 0.244, "max": 3.9, "k3": 0.127}, "INVALID"),
        ("mixed", {}, "PASS"),
        ("bfloat16", {"mean": 0.05, "max": 9.0, "k3": 0.2}, "INVALID"),  # a few tokens far off
        ("float32", {"nonfinite": 1}, "INVALID"),
    ],
)
def test_sampler_against_trainer(precision: Any, changes: dict[str, Any], expected: str) -> None:
    assert level(start.sampler_trainer(replace(GAP, **changes), precision)) == expected


@given(st.sampled_from(sorted(GAPS)), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))
def test_a_larger_gap_is_never_judged_better(
    precision: Any, mean: float, more: float, largest: float, k3: float
) -> None:
    small = replace(GAP, mean=mean, max=largest, k3=k3)
    for change in ({"mean": mean + more}, {"max": largest + more}, {"k3": k3 + more}):
        worse = start.sampler_trainer(replace(small, **change), precision)
        assert ORDER.index(worse.level) >= ORDER.index(start.sampler_trainer(small, precision).level)


def test_limits_are_in_order() -> None:
    for limits in GAPS.values():
        assert limits.mean_warn < limits.mean_invalid
        assert (limits.max_warn or 0.0) < (limits.max_invalid or 1e9)
        assert limits.reason


def test_precision_of_two_dtypes() -> None:
    assert start.precision_of("float32", "float32") == "float32"
    assert start.precision_of("bfloat16", "bfloat16") == "bfloat16"
    assert start.precision_of("bfloat16", "float32") == start.precision_of("float32", "bfloat16") == "mixed"


@pytest.mark.parametrize(
    ("sampled", "tokens", "variance", "expected"),
    [
        (1.70, 1000, 2.5, "PASS"),
        (1.48, 1000, 2.5, "WARN"),  # z = -4.4
        (1.10, 1000, 0.3, "INVALID"),  # colder: the smaller variance of what was sampled does not count
        (2.40, 1000, 6.0, "INVALID"),
        (2.40, 1000, 90.0, "PASS"),  # one great surprise explains it
        (1.10, 10, 2.5, "PASS"),  # too few tokens to tell
    ],
)
def test_sampled_entropy(sampled: float, tokens: int, variance: float, expected: str) -> None:
    found = Surprise(tokens=tokens, sampled=sampled, exact=1.7, variance=variance, expected_variance=2.5)
    assert level(start.sampled_entropy(found)) == expected


@pytest.mark.parametrize(
    ("bracket", "reads", "expected"),
    [
        ("outcome", False, "PASS"), ("dense", True, "PASS"), ("control", False, "PASS"), ("control", True, "PASS"),
        ("outcome", True, "INVALID"), ("dense", False, "INVALID"),
    ],
)  # fmt: skip
def test_reward_information(bracket: str, reads: bool, expected: str) -> None:
    assert level(start.reward_information(bracket, dense=reads)) == expected


def test_a_clean_first_batch_passes() -> None:
    found = [
        first.truncation(CLEAN), first.siblings(CLEAN), first.readable(CLEAN),
        first.dead_groups(CLEAN, group_relative=True), first.dead_groups(CLEAN, group_relative=False),
    ]  # fmt: skip
    assert [level(f) for f in found] == ["PASS"] * 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"truncated": 0.3}, "PASS"),
        ({"truncated": 0.5}, "WARN"),
        ({"truncated": 1.0}, "WARN"),  # rewards still differ: the grader reads what is there
        ({"truncated": 0.9, **DEAD}, "WARN"),  # some finished and were wrong: a hard task
        ({"truncated": 1.0, **DEAD}, "INVALID"),
        ({"truncated": 1.0, **DEAD, "fresh": False}, "WARN"),  # begins from what another run's algorithm made
    ],
)
def test_truncation(changes: dict[str, Any], expected: str) -> None:
    assert level(first.truncation(replace(CLEAN, **changes))) == expected


@pytest.mark.parametrize(
    ("changes", "relative", "expected"),
    [
        ({"dead": 0.9}, True, "PASS"),
        ({"dead": 0.95}, True, "WARN"),
        ({"dead": 0.95}, False, "PASS"),  # a critic learns across groups
        (DEAD, True, "WARN"),  # a hard task is no fault of the set-up
        (DEAD, False, "WARN"),
        ({**DEAD, "dead_wrong": 0.0, "dead_right": 1.0}, True, "WARN"),
        ({"dead": None, "dead_wrong": None, "dead_right": None}, False, "PASS"),
        ({"dead": None, "dead_wrong": None, "dead_right": None, "spread": False}, False, "WARN"),
    ],
)
def test_dead_groups(changes: dict[str, Any], relative: bool, expected: str) -> None:
    found = first.dead_groups(replace(CLEAN, **changes), group_relative=relative)
    assert level(found) == expected
    if changes.get("dead_right") == 1.0:
        assert found.advice == "A harder task."


@pytest.mark.parametrize(
    ("clones", "chance", "expected"),
    [(1.0, 1e-6, "INVALID"), (1.0, 0.7, "PASS"), (0.9, 1e-6, "PASS"), (None, None, "PASS")],
)
def test_siblings(clones: float | None, chance: float | None, expected: str) -> None:
    """Equal siblings are a fault where chance rules them out, and none in a model that is sure of itself."""
    assert level(first.siblings(replace(CLEAN, clones=clones, clones_expected=chance))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"unreadable": 0.9}, "PASS"),
        ({"unreadable": 1.0}, "WARN"),
        ({"empty": 0.99}, "PASS"),
        ({"empty": 1.0}, "INVALID"),
        ({"empty": 1.0, "fresh": False, "unreadable": 1.0}, "WARN"),
    ],
)
def test_readable(changes: dict[str, Any], expected: str) -> None:
    assert level(first.readable(replace(CLEAN, **changes))) == expected


def test_clip_range_warns_at_most() -> None:
    assert level(first.clip_range(None, 0.03)) == "PASS"
    assert level(first.clip_range("Nothing is ever clipped.", 1e-9)) == "WARN"


@pytest.mark.parametrize(
    ("moved", "updates", "lr", "expected"),
    [
        (True, 9, 1e-4, "PASS"),
        (False, 9, 1e-4, "INVALID"),
        (False, 0, 1e-4, "PASS"),  # nothing to learn from: an outcome
        (False, 0, 0.0, "PASS"),  # the canary
        (True, 0, 0.0, "INVALID"),
        (None, 9, 1e-4, "PASS"),
    ],
)
def test_weights_moved(moved: bool | None, updates: int, lr: float, expected: str) -> None:
    assert level(end.weights_moved(moved=moved, updates=updates, lr=lr)) == expected


def test_the_worst_level_and_the_reasons() -> None:
    passed, warned = first.truncation(CLEAN), first.truncation(replace(CLEAN, truncated=0.5))
    broken = start.ends(Ends(responses=3, early=1))
    assert worst([]) == worst([passed]) == "PASS"
    assert worst([passed, warned]) == "WARN"
    assert worst([broken, passed, warned]) == "INVALID"
    said = reasons([passed, warned, broken])
    assert [s.split(":")[0] for s in said] == ["ends", "truncation"]
    assert all(broken.advice in s for s in said[:1])
