"""Kaplan-Meier and log-rank: against scipy, by hand, and under the null."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.survival import Lifetime, kaplan_meier, logrank_p, paired_logrank_p

Drawn = list[tuple[int, bool]]
RUNS = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=14)


def lifetimes(drawn: Drawn) -> list[Lifetime]:
    return [Lifetime(time=float(t), observed=o) for t, o in drawn]


def censored(drawn: Drawn) -> stats.CensoredData:
    return stats.CensoredData(uncensored=[t for t, o in drawn if o], right=[t for t, o in drawn if not o])


@given(RUNS)
def test_kaplan_meier_agrees_with_scipy(drawn: Drawn) -> None:
    found = kaplan_meier(lifetimes(drawn))
    theirs = stats.ecdf(censored(drawn)).sf
    for t, s in zip(found.time, found.survival, strict=True):
        assert s == pytest.approx(float(theirs.evaluate(t)), abs=1e-12)
    with warnings.catch_warnings(action="ignore"):
        interval = theirs.confidence_interval(method="log-log")
    for t, low, high in zip(found.time, found.low, found.high, strict=True):
        if low is not None:
            assert low == pytest.approx(float(interval.low.evaluate(t)), abs=1e-9)
            assert high == pytest.approx(float(interval.high.evaluate(t)), abs=1e-9)


@given(RUNS, RUNS)
def test_log_rank_agrees_with_scipy(a: Drawn, b: Drawn) -> None:
    if not any(o for _, o in (*a, *b)):
        assert logrank_p(lifetimes(a), lifetimes(b)) == 1.0
        return
    with warnings.catch_warnings(action="ignore"):
        theirs = stats.logrank(censored(a), censored(b)).pvalue
    if np.isfinite(theirs):
        assert logrank_p(lifetimes(a), lifetimes(b)) == pytest.approx(theirs, abs=1e-9)


def test_runs_that_hold_are_censored_and_not_dropped() -> None:
    found = kaplan_meier(lifetimes([(5, True), (9, False), (9, False), (9, False)]))
    assert (found.survival, found.at_risk, found.median) == ([0.75], [4], None)
    assert kaplan_meier(lifetimes([(9, False)] * 3)).survival == []


def test_paired_log_rank_is_exact_by_hand() -> None:
    """Three pairs in which only A collapses: of the 8 swaps, two are as extreme."""
    a, b = lifetimes([(3, True), (4, True), (5, True)]), lifetimes([(9, False)] * 3)
    assert paired_logrank_p(a, b) == 2 / 8
    assert paired_logrank_p(a, a) == 1.0
    assert paired_logrank_p([], []) is None


def test_paired_log_rank_holds_its_level() -> None:
    rng = np.random.default_rng(5)
    p = []
    for _ in range(60):
        frail = rng.exponential(1.0, 8)  # shared by the pair
        a, b = (
            [Lifetime(time=min(9.0, x), observed=x < 9.0) for x in 6 * frail * rng.exponential(1.0, 8)]
            for _ in range(2)
        )
        p.append(paired_logrank_p(a, b))
    assert np.mean(np.array(p) <= 0.05) <= 0.1
