"""Time to collapse: runs that reach their budget without one are censored there, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

EXACT_LIMIT = 12  # seed pairs up to which all 2^n swaps are enumerated


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Budget spent until the collapse (`observed`), or until the run ended without one."""

    time: float
    observed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """Kaplan-Meier estimate as a step function: `survival[i]` holds from `time[i]` on; it is 1 before the first."""

    time: list[float]
    survival: list[float]
    low: list[float | None]
    high: list[float | None]
    at_risk: list[int]
    events: list[int]
    n: int
    median: float | None  # first time at which at most half survive

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def kaplan_meier(runs: Sequence[Lifetime], level: float = 0.95) -> Survival:
    """S(t) = prod over event times of (1 - d/n), Greenwood's variance, log(-log S) interval.

    The interval is None where the variance is not defined (S = 0).
    """
    z = float(stats.norm.ppf(0.5 + level / 2))
    times = sorted({r.time for r in runs if r.observed})
    survival, variance = 1.0, 0.0
    rows: list[tuple[float, float, float | None, float | None, int, int]] = []
    for t in times:
        at_risk = sum(r.time >= t for r in runs)
        died = sum(r.observed and r.time == t for r in runs)
        survival *= 1 - died / at_risk
        low = high = None
        if survival > 0:
            variance += died / (at_risk * (at_risk - died))
            width = z * float(np.sqrt(variance)) / abs(float(np.log(survival)))
            low, high = survival ** float(np.exp(width)), survival ** float(np.exp(-width))
        rows.append((t, survival, low, high, at_risk, died))
    columns: list[list[Any]] = [list(c) for c in zip(*rows, strict=True)] if rows else [[] for _ in range(6)]
    median = next((t for t, s, *_ in rows if s <= 0.5), None)
    return Survival(
        time=columns[0], survival=columns[1], low=columns[2], high=columns[3], at_risk=columns[4], events=columns[5],
        n=len(runs), median=median,
    )  # fmt: skip


def logrank_statistic(a: Sequence[Lifetime], b: Sequence[Lifetime]) -> float:
    """Log-rank z = (O_a - E_a) / sqrt(V), hypergeometric variance; 0 where nothing collapsed."""
    observed = expected = variance = 0.0
    for t in sorted({r.time for r in (*a, *b) if r.observed}):
        risk_a, risk_b = sum(r.time >= t for r in a), sum(r.time >= t for r in b)
        dead_a = sum(r.observed and r.time == t for r in a)
        dead = dead_a + sum(r.observed and r.time == t for r in b)
        n = risk_a + risk_b
        observed += dead_a
        expected += dead * risk_a / n
        if n > 1:
            variance += dead * (risk_a / n) * (risk_b / n) * (n - dead) / (n - 1)
    return (observed - expected) / float(np.sqrt(variance)) if variance > 0 else 0.0


def logrank_p(a: Sequence[Lifetime], b: Sequence[Lifetime]) -> float:
    """Two-sided asymptotic log-rank p, chi2(1); pairing is ignored."""
    return float(stats.chi2.sf(logrank_statistic(a, b) ** 2, 1))


def paired_logrank_p(
    a: Sequence[Lifetime], b: Sequence[Lifetime], resamples: int = 4000, seed: int = 0
) -> float | None:
    """Log-rank p by swapping the arms' labels inside seed pairs: exact up to 12 pairs, then Monte Carlo.

    The same permutation as for scores, so the pairing is kept. None without pairs.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} against {len(b)} runs: pairs are needed")
    if not a:
        return None
    n, observed = len(a), abs(logrank_statistic(a, b))
    exact = n <= EXACT_LIMIT
    swaps = (
        np.array(list(product((False, True), repeat=n)))
        if exact
        else np.random.default_rng(seed).random((resamples, n)) < 0.5
    )
    hits = 0
    for swap in swaps:
        left = [y if s else x for x, y, s in zip(a, b, swap, strict=True)]
        right = [x if s else y for x, y, s in zip(a, b, swap, strict=True)]
        hits += abs(logrank_statistic(left, right)) >= observed - 1e-12
    return hits / len(swaps) if exact else (1 + hits) / (1 + len(swaps))
