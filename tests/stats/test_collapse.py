"""Collapse rates and means of arms in which some runs collapsed."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats.collapse import barnard_p, mcnemar_p, pooled_p, rate_difference, two_part_mean
from harness.stats.estimate import mean_t
from harness.stats.power import collapse_power


def test_barnard_and_its_power_as_in_the_table() -> None:
    """0 against 50 %: .19, .62, .82 with 5, 8, 10 runs; 10 against 50 %: .48 with 10."""
    found = [collapse_power(0.0, 0.5, n) for n in (5, 8, 10)]
    assert found == pytest.approx([0.19, 0.62, 0.82], abs=0.03)
    assert collapse_power(0.1, 0.5, 10) == pytest.approx(0.48, abs=0.03)
    assert barnard_p(0, 10, 3, 10) == pytest.approx(barnard_p(3, 10, 0, 10))
    assert (barnard_p(2, 8, 2, 8), barnard_p(0, 0, 1, 4)) == (1.0, None)


def test_mcnemar_counts_discordant_pairs_only() -> None:
    a, b = [True] * 6 + [False] * 4, [False] * 6 + [False] * 4
    assert mcnemar_p(a, b) == pytest.approx(2 / 2**6)
    assert mcnemar_p(a, a) == 1.0
    assert mcnemar_p([], []) is None


def test_rates_pool_over_tasks() -> None:
    assert pooled_p([(0, 10, 0, 10)]) is None
    one, two = pooled_p([(0, 10, 3, 10)]), pooled_p([(0, 10, 3, 10), (0, 10, 3, 10)])
    assert one is not None
    assert two is not None
    assert two < one


def test_the_interval_of_a_rate_difference_covers() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.binomial(10, 0.4, 1500), rng.binomial(10, 0.1, 1500)
    found = [rate_difference(int(x), 10, int(y), 10) for x, y in zip(a, b, strict=True)]
    covered = np.mean([e.low <= 0.3 <= e.high for e in found])  # type: ignore[operator]
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize("n", [5, 8, 20])
def test_the_two_part_interval_covers_where_the_t_interval_does_not(n: int) -> None:
    """20 % collapses: METHOD measured .68, .84 and (with ten) .88 for the t interval."""
    rng = np.random.default_rng(n)
    truth = 0.8 * 0.8 + 0.2 * 0.05
    two, plain = [], []
    for i in range(500):
        hit = rng.random(n) < 0.2
        survived, collapsed = rng.normal(0.8, 0.03, (~hit).sum()), rng.uniform(0, 0.1, hit.sum())
        t = mean_t([*survived, *collapsed])
        plain.append(t.low <= truth <= t.high)  # type: ignore[operator]
        found = two_part_mean(list(survived), list(collapsed), seed=i)
        if found.low is not None and found.high is not None:
            two.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(two) <= 0.99
    assert np.mean(plain) < 0.93


def test_the_two_part_mean_is_the_mean_of_all_runs() -> None:
    found = two_part_mean([0.8, 0.82, 0.81, 0.79], [0.05])
    assert found.value == pytest.approx(np.mean([0.8, 0.82, 0.81, 0.79, 0.05]))
    assert two_part_mean([0.8, 0.82, 0.81], []).low is None
    assert two_part_mean([0.8], [0.1]).low is None
    assert two_part_mean([], []).value is None
