"""Thresholds with censoring, rank distributions."""

import pytest

from harness.stats.rank import rank_distribution
from harness.stats.threshold import Crossing, first_crossing, median_crossing, restricted_mean


def test_crossing_is_interpolated() -> None:
    assert first_crossing([0, 10, 20], [0.2, 0.4, 0.8], 0.5) == Crossing(value=12.5, censored=False)


def test_crossing_at_the_start_skips_gaps_and_takes_the_first() -> None:
    assert first_crossing([0, 10], [0.5, 0.1], 0.4) == Crossing(value=0.0, censored=False)
    assert first_crossing([0, 10, 20, 30], [0.2, None, 0.6, 0.1], 0.4) == Crossing(value=10.0, censored=False)


def test_a_run_that_never_arrives_is_censored_at_its_end() -> None:
    assert first_crossing([0, 10], [0.1, 0.2], 0.4) == Crossing(value=10.0, censored=True)
    assert first_crossing([], [], 0.4) is None


def test_censored_runs_are_never_dropped() -> None:
    runs = [Crossing(value=10, censored=False), Crossing(value=20, censored=False), Crossing(value=40, censored=True)]
    assert median_crossing(runs) == 20
    assert median_crossing(runs[1:]) is None
    assert median_crossing([]) is None
    found = restricted_mean(runs, horizon=40)
    assert found.value == pytest.approx(70 / 3)
    assert found.note == "2/3 reached"
    assert found.low is not None
    assert found.low >= 0


def test_ranks_are_probabilities_and_reproducible() -> None:
    scores = {"A": {0: 0.9, 1: 0.8, 2: 0.9}, "B": {0: 0.5, 1: 0.6, 2: 0.5, 3: 0.9}, "C": {0: 0.5, 1: 0.6, 2: 0.5}}
    found = rank_distribution(scores)
    assert found == rank_distribution(scores)
    assert found["A"][0] == 1.0
    assert found["B"][1] == pytest.approx(0.5, abs=0.05), "ties share their ranks"
    assert all(sum(p) == pytest.approx(1.0) for p in found.values())
    assert rank_distribution({}) == {}
