"""Simulated studies with known truth: how often a label is wrong, how often an interval covers."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats.compare import Arm, compare_family
from harness.stats.estimate import mean_t
from harness.stats.paired import max_t_p

WINNERS = ("A>B", "B>A")


def arms(
    rng: np.random.Generator, n: int, num: int = 6, last: float = 0.0, spread: float = 1.0, collapse: float = 0.0
) -> list[Arm]:
    """Arms of equal mean that share their seeds; the last one is `last` higher and `spread` times as noisy."""
    scores = 0.5 + rng.normal(0, 0.05, (n, 1)) + rng.normal(0, 0.03, (n, num)) * [*[1.0] * (num - 1), spread]
    scores[:, -1] += last
    lost = rng.random(scores.shape) < collapse
    scores = np.where(lost, 0.05, scores)
    return [
        Arm(name=f"a{j}", scores=dict(enumerate(scores[:, j].tolist())), collapsed=bool(lost[:, j].any()))
        for j in range(num)
    ]


def false_winners(studies: int, n: int, seed: int, *, equal: int = 6, **kind: float) -> float:
    """Share of studies in which an arm of equal mean is called better or worse than the reference."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(studies):
        found = arms(rng, n, **kind)  # type: ignore[arg-type]
        labels = [c.label for c in compare_family([(a, found[0]) for a in found[1:]], 0.02)]
        wrong += any(label in WINNERS for label in labels[: equal - 1])
    return wrong / studies


@pytest.mark.parametrize(("n", "studies"), [(5, 1000), (10, 150)])
def test_false_winners_over_null_studies(n: int, studies: int) -> None:
    assert false_winners(studies, n, seed=n) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize("kind", [{"last": 0.3}, {"spread": 8.0}])
def test_one_deviating_arm_does_not_make_the_others_win(kind: dict[str, float]) -> None:
    """Permuting all labels presumes that all arms are equal; exchanges inside pairs do not."""
    assert false_winners(200, 10, seed=3, equal=5, **kind) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_permuting_all_labels_alone_would() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        found = arms(rng, 10, spread=8.0)
        table = np.array([list(a.scores.values()) for a in found]).T
        wrong += min(max_t_p(table, [(j, 0) for j in range(1, 6)], resamples=400)[:4]) < 0.05
    assert wrong / 200 > 0.08, "if this no longer fails, the second permutation is not needed"


def test_false_winners_with_collapses() -> None:
    assert false_winners(200, 8, seed=4, collapse=0.2) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 7, 10, 14])
def test_ten_thousand_null_studies(n: int) -> None:
    assert false_winners(10_000, n, seed=100 + n) <= 0.055


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_intervals_cover(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [mean_t(list(rng.normal(0.6, 0.03, n))) for _ in range(1500)]
    assert 0.93 <= np.mean([e.low <= 0.6 <= e.high for e in found]) <= 0.97  # type: ignore[operator]


def test_real_differences_are_found() -> None:
    """Power at the minimal detectable effect of the first Holm step is at least 80 %."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(150):
        pair = arms(rng, 10, num=2, last=1.05 * 0.03 * np.sqrt(2))
        found += compare_family([(pair[1], pair[0])], 0.02)[0].label == "A>B"
    assert found / 150 >= 0.75
