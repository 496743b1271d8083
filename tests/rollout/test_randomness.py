"""Counter-based random numbers: a function of the key, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.core.randomness import counter, integer, permutation, uniforms

KEYS = [(seed, rollout, counter(f"p{prompt}"), sample, 0) for seed in (0, 1) for rollout in (0, 5) for prompt in
        range(8) for sample in range(8)]  # fmt: skip


def test_a_row_depends_on_its_key_alone() -> None:
    together = uniforms(KEYS, 20)
    backwards = uniforms(KEYS[::-1], 20)[::-1]
    np.testing.assert_array_equal(together, backwards)
    for i in (0, 17, len(KEYS) - 1):
        np.testing.assert_array_equal(uniforms([KEYS[i]], 20)[0], together[i])
        np.testing.assert_array_equal(uniforms([KEYS[i]], 5)[0], together[i, :5])


def test_the_stream_is_fixed_for_good() -> None:
    """These numbers are part of every result; a change of them is a change of numerics_version."""
    found = uniforms([(0, 0), (1, 2)], 2).tolist()
    assert found == [[0.30614925490281353, 0.34172387327559595], [0.5809105666505263, 0.06757950475302732]]


def test_uniformity_of_values_rows_and_positions() -> None:
    many = uniforms([(3, i) for i in range(4000)], 10)
    assert many.min() >= 0
    assert many.max() < 1
    assert stats.kstest(many.ravel(), "uniform").pvalue > 1e-3
    for position in range(10):
        assert stats.kstest(many[:, position], "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(many.T)[np.triu_indices(10, 1)]).max() < 0.07
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.06, "neighbouring keys are independent"


@pytest.mark.parametrize("place", range(5))
def test_every_counter_matters(place: int) -> None:
    other = [tuple(k + (i == place) for i, k in enumerate(key)) for key in KEYS]
    assert not (uniforms(KEYS, 4) == uniforms(other, 4)).any()


def test_order_and_number_of_counters_matter() -> None:
    assert len({float(uniforms([key], 1)[0, 0]) for key in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1,)]}) == 5


def test_negative_counters_and_huge_ones() -> None:
    assert uniforms([(-1, 2**64 - 2)], 3).shape == (1, 3)


def test_permutations() -> None:
    orders = [permutation((0, 2, epoch), 6) for epoch in range(3000)]
    assert all(sorted(order.tolist()) == list(range(6)) for order in orders)
    np.testing.assert_array_equal(orders[7], permutation((0, 2, 7), 6))
    where = np.bincount([int(order.tolist().index(0)) for order in orders], minlength=6)
    assert stats.chisquare(where).pvalue > 1e-3
    assert permutation((1,), 0).tolist() == []


def test_integers_cover_their_range() -> None:
    found = np.bincount([integer((9, i), 7) for i in range(3500)], minlength=7)
    assert len(found) == 7
    assert stats.chisquare(found).pvalue > 1e-3
