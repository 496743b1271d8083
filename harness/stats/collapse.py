"""How often runs collapse, and what a mean is worth when some do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

from harness.stats.estimate import MIN_N, Estimate, finite, jeffreys

DRAWS = 20_000


@lru_cache(maxsize=4096)
def barnard_p(k_a: int, n_a: int, k_b: int, n_b: int) -> float | None:
    """Two-sided p of equal collapse rates, Barnard's exact test; pairing is ignored. None without runs."""
    if not n_a or not n_b:
        return None
    if k_a / n_a == k_b / n_b:
        return 1.0
    return float(min(1.0, stats.barnard_exact([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue))


def mcnemar_p(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Two-sided exact McNemar p over seed pairs: discordant pairs as fair coin flips. None without pairs."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} against {len(b)} outcomes: pairs are needed")
    if not a:
        return None
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def rate_difference(k_a: int, n_a: int, k_b: int, n_b: int, level: float = 0.95) -> Estimate:
    """k_a/n_a - k_b/n_b; interval from the two Jeffreys intervals as in Newcombe (1998), pairing ignored."""
    name = "difference of collapse rates, Newcombe interval from Jeffreys limits"
    n = min(n_a, n_b)
    if not n:
        return Estimate(value=None, n=0, level=level, estimator=name, note="no run")
    a, b = jeffreys(k_a, n_a, level), jeffreys(k_b, n_b, level)
    (va, la, ha), (vb, lb, hb) = ((e.value or 0.0, e.low or 0.0, e.high or 0.0) for e in (a, b))
    value = va - vb
    low, high = value - float(np.hypot(va - la, hb - vb)), value + float(np.hypot(ha - va, vb - lb))
    return Estimate(value=value, low=max(-1.0, low), high=min(1.0, high), n=n, level=level, estimator=name)


def pooled_p(tables: Sequence[tuple[int, int, int, int]]) -> float | None:
    """p of equal collapse rates over tasks, Cochran-Mantel-Haenszel; a table is (k_a, n_a, k_b, n_b).

    None where no task has both a collapse and a survivor.
    """
    from statsmodels.stats.contingency_tables import StratifiedTable  # loads pandas: seconds, and rarely needed

    useful = [
        np.array([[ka, na - ka], [kb, nb - kb]]) for ka, na, kb, nb in tables if na and nb and 0 < ka + kb < na + nb
    ]
    return float(StratifiedTable(useful).test_null_odds().pvalue) if useful else None


def two_part_mean(
    survived: Sequence[float], collapsed: Sequence[float], level: float = 0.95, seed: int = 0
) -> Estimate:
    """Unconditional mean (1 - p) m_s + p m_c of an arm with k >= 1 collapses.

    The interval is the quantiles of independent draws: p from its Jeffreys posterior Beta(k + 1/2, n - k + 1/2), each
    part's mean from its t distribution; a part of fewer than three runs has no spread of its own and is given the
    other's. A t interval of all scores together takes the two clusters for one normal distribution and under-covers;
    this one is on the wide side below ten runs.
    """
    s, c = finite(list(survived)), finite(list(collapsed))
    n, k = len(s) + len(c), len(c)
    name = "two-part mean: collapse rate (Jeffreys) x means of the parts (t)"
    if n == 0:
        return Estimate(value=None, n=0, level=level, estimator=name, note="no value")
    value = float(np.concatenate([s, c]).mean())
    if k == 0 or max(len(s), k) < MIN_N:
        note = "no collapse: use the t interval of the mean" if k == 0 else f"n={n}, no interval"
        return Estimate(value=value, n=n, level=level, estimator=name, note=note)
    rng = np.random.default_rng(seed)
    rate = rng.beta(k + 0.5, n - k + 0.5, DRAWS)
    drawn = (1 - rate) * _mean_draws(s, c, rng) + rate * _mean_draws(c, s, rng)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value=value, low=float(low), high=float(high), n=n, level=level, estimator=name)


def _mean_draws(part: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of a part's mean."""
    source = part if len(part) >= MIN_N else other
    scale = float(source.std(ddof=1)) / np.sqrt(max(1, len(part)))
    centre = float(part.mean()) if len(part) else 0.0
    return np.asarray(centre + scale * rng.standard_t(len(source) - 1, DRAWS))
