"""The label of a comparison, rule by rule."""

import numpy as np
import pytest

from harness.stats.compare import Arm, Comparison, compare_family


def arm(name: str, mean: float, sd: float, n: int, seed: int, *, collapsed: bool = False) -> Arm:
    noise = np.random.default_rng(seed).normal(0, 1, n)
    noise = (noise - noise.mean()) / noise.std(ddof=1) if n > 1 else noise * 0
    return Arm(name=name, scores={i: mean + sd * float(x) for i, x in enumerate(noise)}, collapsed=collapsed)


def one(a: Arm, b: Arm, delta: float = 0.02, se: float | None = None) -> Comparison:
    return compare_family([(a, b)], delta, {(a.name, b.name): se} if se is not None else None)[0]


@pytest.mark.parametrize("n", [5, 12])
def test_a_clear_difference_has_a_winner_whichever_test_decides(n: int) -> None:
    a, b = arm("A", 0.7, 0.01, n, 1), arm("B", 0.5, 0.01, n, 2)
    assert one(a, b).label == "A>B"
    assert one(b, a).label == "B>A"
    assert one(a, b).test.startswith("max-|t|" if n >= 10 else "paired t")


def test_equivalent_only_through_tost() -> None:
    found = one(arm("A", 0.601, 0.004, 9, 1), arm("B", 0.6, 0.004, 9, 2))
    assert found.label == "equivalent"
    assert found.p_tost_adjusted is not None
    assert found.p_tost_adjusted < 0.05


def test_wide_spread_is_underpowered_and_says_how_many_seeds_are_needed() -> None:
    found = one(arm("A", 0.61, 0.05, 5, 1), arm("B", 0.6, 0.05, 5, 2))
    assert found.label == "inconclusive-underpowered"
    assert found.mde is not None
    assert found.mde > 0.02
    assert found.seeds_needed is not None
    assert found.seeds_needed_upper is not None
    assert 5 < found.seeds_needed < found.seeds_needed_upper


def test_two_seeds_say_nothing() -> None:
    found = one(arm("A", 0.9, 0.01, 2, 1), arm("B", 0.1, 0.01, 2, 2))
    assert found.label == "inconclusive-underpowered"
    assert "n=2" in found.why


def test_powered_but_neither_different_nor_equivalent_is_inconclusive() -> None:
    fixed = Arm(name="B", scores=dict.fromkeys(range(8), 0.6))
    found = one(arm("A", 0.612, 0.02, 8, 1), fixed, delta=0.025)
    assert found.label == "inconclusive"
    assert found.mde is not None
    assert found.mde < 0.025


def test_a_collapse_forbids_a_winner_below_twenty_seeds() -> None:
    found = one(arm("A", 0.7, 0.01, 6, 1), arm("B", 0.4, 0.01, 6, 2, collapsed=True))
    assert found.label == "inconclusive"
    assert "collapsed" in found.why


def test_evaluation_noise_above_a_third_of_the_spread() -> None:
    a, b = arm("A", 0.61, 0.01, 5, 1), arm("B", 0.6, 0.01, 5, 2)
    assert one(a, b, se=0.02).label == "measurement-limited"
    assert one(a, b, se=0.0001).label != "measurement-limited"
    far = arm("C", 0.9, 0.01, 5, 3)
    assert one(far, b, se=0.02).label == "A>B", "a difference far beyond the noise stands"


def test_the_family_is_corrected_together_and_unpaired_seeds_are_left_out() -> None:
    reference = arm("R", 0.6, 0.01, 5, 0)
    others = [arm(f"A{i}", 0.6 + 0.02 * i, 0.01, 5, i + 1) for i in range(4)]
    family = compare_family([(a, reference) for a in others], 0.02)
    alone = [one(a, reference) for a in others]
    assert all((f.p_adjusted or 0) >= (s.p_adjusted or 0) for f, s in zip(family, alone, strict=True))
    assert {f.family for f in family} == {4}
    short = Arm(name="S", scores={k: v for k, v in others[3].scores.items() if k < 3})
    assert one(short, reference).seeds == (0, 1, 2)
    assert compare_family([], 0.02) == []
