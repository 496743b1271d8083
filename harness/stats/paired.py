"""Paired seed differences: interval, exact test, equivalence, power."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special

from harness.stats.estimate import MIN_N

EXACT_LIMIT = 16  # pairs up to which all 2^n sign flips are enumerated


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Mean of a_i - b_i over paired seeds with everything derived from the same differences."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    level: float
    sd: float | None  # of the differences
    p_t: float | None  # paired t, two-sided
    p_sign_flip: float | None  # sign-flip permutation, two-sided
    p_tost: float | None  # equivalence within +-delta
    rho: float | None  # correlation of the paired scores: what the pairing gains
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def paired_difference(a: Sequence[float], b: Sequence[float], delta: float, level: float = 0.95) -> Paired:
    """Mean difference with t interval, sign-flip and TOST p values; below three pairs only the difference."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"{len(x)} against {len(y)} scores: pairs are needed")
    d = x - y
    n = len(d)
    if n < MIN_N:
        note = f"n={n}, no interval" if n else "no pair"
        value = float(d.mean()) if n else None
        return Paired(
            value=value, low=None, high=None, n=n, level=level, sd=None, p_t=None, p_sign_flip=None, p_tost=None,
            rho=None, note=note,
        )  # fmt: skip
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * sd / np.sqrt(n)
    return Paired(
        value=mean,
        low=mean - float(half),
        high=mean + float(half),
        n=n,
        level=level,
        sd=sd,
        p_t=t_p(d),
        p_sign_flip=sign_flip_p(d),
        p_tost=tost_p(d, delta),
        rho=_correlation(x, y),
    )


def t_p(d: np.ndarray, shift: float = 0.0, tail: str = "two") -> float:
    """p of the one-sample t test of mean(d) = shift; a zero spread decides by the mean alone."""
    n, mean, se = len(d), float(d.mean()) - shift, float(d.std(ddof=1)) / np.sqrt(len(d))
    t = mean / se if se > 0.0 else np.copysign(np.inf, mean) if mean else 0.0
    if tail == "greater":
        return float(special.stdtr(n - 1, -t))
    if tail == "less":
        return float(special.stdtr(n - 1, t))
    return float(min(1.0, 2 * special.stdtr(n - 1, -abs(t))))


def sign_flip_p(d: np.ndarray, resamples: int = 20_000, seed: int = 0) -> float:
    """Two-sided sign-flip permutation p of mean(d) = 0: exact up to 16 pairs, then Monte Carlo with a fixed seed."""
    n, observed = len(d), abs(float(np.sum(d)))
    tolerance = 1e-12 * max(1.0, observed)
    if n <= EXACT_LIMIT:
        return float(np.mean(np.abs(_all_signs(n) @ d) >= observed - tolerance))
    flips = _some_signs(n, resamples, seed)
    return float((1 + np.sum(np.abs(flips @ d) >= observed - tolerance)) / (1 + resamples))


@lru_cache(maxsize=EXACT_LIMIT)
def _all_signs(n: int) -> np.ndarray:
    """Every combination of n signs, [2^n, n]; the first is all plus."""
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))


@lru_cache(maxsize=2)
def _some_signs(n: int, resamples: int, seed: int) -> np.ndarray:
    """Random combinations of n signs, [resamples, n]."""
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(resamples, n))


def tost_p(d: np.ndarray, delta: float) -> float:
    """Two one-sided t tests: p of "|mean| >= delta"; small means equivalent within +-delta."""
    return max(t_p(d, -delta, "greater"), t_p(d, delta, "less"))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p values."""
    order = np.argsort(p, kind="stable")
    adjusted, running = np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return [float(x) for x in adjusted]


def minimal_detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true mean difference a two-sided paired t test at `alpha` finds with `power` (noncentral t)."""
    if n < MIN_N:
        return None
    if sd == 0.0:
        return 0.0
    return float(_effect(n, alpha, power) * sd)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(120)
    return nodes, weights


@lru_cache(maxsize=4096)
def sd_quadrature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of (sample SD / SD) of n normal values and their probabilities, for integrals over the sample SD."""
    nodes, weights = _quadrature()
    return np.sqrt(2 * special.gammaincinv((n - 1) / 2, (nodes + 1) / 2) / (n - 1)), weights / 2


@lru_cache(maxsize=16_384)
def _effect(n: int, alpha: float, power: float) -> float:
    """Effect in SD units; the power is integrated over the sample SD (scipy's noncentral t overflows for small n)."""
    critical = float(special.stdtrit(n - 1, 1 - alpha / 2))
    nodes, weights = sd_quadrature(n)
    spread = critical * nodes

    def shortfall(effect: float) -> float:
        shift = effect * np.sqrt(n)
        reached = special.ndtr(shift - spread) + special.ndtr(-spread - shift)
        return float(weights @ reached) - power

    high = (critical + 3.0) / np.sqrt(n)
    while shortfall(high) < 0:
        high *= 1.5
    return float(optimize.brentq(shortfall, 1e-9, high, xtol=1e-6))


def pairs_needed(sd: float, effect: float, alpha: float = 0.05, power: float = 0.8, limit: int = 10_000) -> int | None:
    """Smallest number of pairs whose minimal detectable effect is at most `effect`; None above `limit`."""
    low, high = MIN_N, limit
    if (minimal_detectable_effect(sd, high, alpha, power) or 0.0) > effect:
        return None
    while low < high:
        middle = (low + high) // 2
        reached = (minimal_detectable_effect(sd, middle, alpha, power) or 0.0) <= effect
        low, high = (low, middle) if reached else (middle + 1, high)
    return low


def bonferroni_t(n: int, family: int, alpha: float = 0.05) -> float:
    """Critical |t| of intervals that hold for `family` comparisons at once."""
    return float(special.stdtrit(n - 1, 1 - alpha / 2 / max(1, family)))


def sd_upper(sd: float, n: int, level: float = 0.8) -> float:
    """One-sided upper bound of an SD estimated from n values, sd sqrt((n-1) / chi2_{1-level}(n-1))."""
    return float(sd * np.sqrt((n - 1) / (2 * special.gammaincinv((n - 1) / 2, 1 - level))))


def max_t_p(scores: np.ndarray, pairs: Sequence[tuple[int, int]], resamples: int = 4000, seed: int = 0) -> list[float]:
    """Family-adjusted p of paired differences by the max-|t| over within-seed permutations of the arm labels.

    `scores` is [seeds, arms]; `pairs` are columns. The permutations keep the pairing and the family's dependence.
    """
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    observed = _abs_t(scores[None], left, right)[0]
    order = _orders(resamples, scores.shape[0], scores.shape[1], seed)
    shuffled = np.take_along_axis(np.broadcast_to(scores, order.shape), order, axis=2)
    largest = _abs_t(shuffled, left, right).max(axis=1)
    return [float((1 + np.sum(largest >= t * (1 - 1e-9))) / (1 + resamples)) for t in observed]


@lru_cache(maxsize=4)
def _orders(resamples: int, seeds: int, arms: int, seed: int) -> np.ndarray:
    """Permutations of the arm labels inside each seed."""
    return np.random.default_rng(seed).random((resamples, seeds, arms)).argsort(axis=2)


def flip_max_t(
    differences: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[list[float], float]:
    """Family-adjusted p of paired differences by the max-|t| over joint sign flips, and the critical |t| of `level`.

    `differences` is [seeds, pairs]. A flip exchanges the two labels of every compared pair inside one seed. Each pair
    keeps its own spread and centre, so the family-wise rate holds whichever of the other arms differ; permuting all
    labels is valid only while all arms are equal. Exact up to 16 seeds, then Monte Carlo.
    """
    n = len(differences)
    if n <= EXACT_LIMIT:
        signs = _all_signs(n)[: 2 ** (n - 1)]  # the rest mirrors these
    else:
        signs = np.vstack([np.ones(n), _some_signs(n, resamples - 1, seed)])  # the observed labels are one of the draws
    mean = signs @ differences / n
    spread = np.sqrt(np.clip((differences**2).sum(0) - n * mean**2, 0.0, None) / (n - 1) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(np.abs(mean) < 1e-15, 0.0, np.abs(mean) / spread)
    largest, observed = t.max(axis=1), t[0]
    p = [float(np.mean(largest >= x * (1 - 1e-9))) for x in observed]
    return p, float(np.quantile(largest, level, method="higher"))


def _abs_t(scores: np.ndarray, left: list[int], right: list[int]) -> np.ndarray:
    """|t| of the paired differences of every draw, [draws, seeds, arms] -> [draws, pairs].

    The variance of a difference is V_ii + V_jj - 2 V_ij, so that all pairs of many arms cost little.
    """
    n = scores.shape[1]
    means = scores.mean(axis=1)
    centred = scores - means[:, None]
    products = centred.transpose(0, 2, 1) @ centred
    own = np.diagonal(products, axis1=1, axis2=2)
    both = own[:, left] + own[:, right]
    spread = both - 2 * products[:, left, right]
    spread = np.where(spread < 1e-12 * both, 0.0, spread)  # what is left by rounding
    mean = np.abs(means[:, left] - means[:, right])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(mean < 1e-15, 0.0, mean / np.sqrt(spread / (n - 1) / n)))


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if x.std() == 0.0 or y.std() == 0.0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
