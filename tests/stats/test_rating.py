"""The rating from rated problems: known cases, the interval's likelihood, one-sided ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats.rating import rating


def log_likelihood(at: float, ratings: list[float], solved: list[float]) -> float:
    total = 0.0
    for r, y in zip(ratings, solved, strict=True):
        p = 1 / (1 + 10 ** ((r - at) / 400))
        total += y * math.log(p) + (1 - y) * math.log(1 - p)
    return total


def test_half_of_equal_problems_is_their_rating_and_the_odds_are_elo() -> None:
    assert rating([1500.0] * 4, [1, 0, 1, 0]).value == pytest.approx(1500, abs=0.1)
    assert rating([1500.0] * 11, [1.0] * 10 + [0.0]).value == pytest.approx(1900, abs=0.1)  # odds of 10


def test_the_value_is_the_maximum_and_the_ends_lie_chi2_below_it() -> None:
    ratings, solved = [800.0, 1000, 1200, 1600, 2000, 2400], [1, 1, 0.5, 0.25, 0, 0]
    found = rating(ratings, solved)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    top = log_likelihood(found.value, ratings, solved)
    assert all(log_likelihood(found.value + d, ratings, solved) < top for d in (-20, 20))
    for end in (found.low, found.high):
        assert top - log_likelihood(end, ratings, solved) == pytest.approx(3.841 / 2, abs=1e-3)


def test_nothing_or_everything_solved_gives_one_end() -> None:
    none, every = rating([1000.0, 1400], [0, 0]), rating([1000.0, 1400], [1, 1])
    assert (none.value, none.low, none.note) == (None, None, "nothing solved")
    assert (every.value, every.high, every.note) == (None, None, "everything solved")
    assert none.high is not None
    assert log_likelihood(none.high, [1000.0, 1400], [0, 0]) == pytest.approx(-3.841 / 2, abs=1e-3)
    assert rating([], []).note == "no rated problem"


def test_the_interval_covers() -> None:
    """95 % of intervals hold the true rating, by simulation."""
    rng = np.random.default_rng(0)
    ratings = list(np.linspace(800, 2400, 60))
    p = 1 / (1 + 10 ** ((np.array(ratings) - 1500) / 400))
    hits = 0
    for _ in range(300):
        found = rating(ratings, list((rng.random(60) < p).astype(float)))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1500 <= found.high
    assert hits / 300 == pytest.approx(0.95, abs=0.03)
