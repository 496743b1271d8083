"""Single-sample estimates: every number travels with its estimator, its n and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special, stats

MIN_N = 3  # fewer seeds than this get no interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with what is needed to judge it; `low`/`high` are None where no interval can be given."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    level: float = 0.95
    estimator: str = ""
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def finite(values: Sequence[float | None]) -> np.ndarray:
    """The values that are numbers."""
    array = np.array([np.nan if v is None else v for v in values], dtype=float)
    return np.asarray(array[np.isfinite(array)])


def mean_t(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Mean with a Student-t interval, mean +- t(n-1) SD / sqrt(n); below three values no interval."""
    x = finite(values)
    n = len(x)
    name = "mean over runs, Student-t interval"
    if n == 0:
        return Estimate(value=None, n=0, level=level, estimator=name, note="no value")
    if n < MIN_N:
        return Estimate(value=float(x.mean()), n=n, level=level, estimator=name, note=f"n={n}, no interval")
    half = float(special.stdtrit(n - 1, 0.5 + level / 2) * x.std(ddof=1) / np.sqrt(n))
    mean = float(x.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half, n=n, level=level, estimator=name)


def iqm(values: Sequence[float | None]) -> float | None:
    """Interquartile mean (25 % trimmed at both ends); blind to a quarter of failed runs, so never shown alone."""
    x = finite(values)
    return float(stats.trim_mean(x, 0.25)) if len(x) else None


def jeffreys(k: int, n: int, level: float = 0.95) -> Estimate:
    """Share k/n with the Jeffreys interval, Beta(k + 1/2, n - k + 1/2) quantiles, closed at k = 0 and k = n."""
    if not 0 <= k <= n:
        raise ValueError(f"k={k} of n={n}")
    name = "share, Jeffreys interval"
    if n == 0:
        return Estimate(value=None, n=0, level=level, estimator=name, note="no run")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(special.betaincinv(k + 0.5, n - k + 0.5, tail))
    high = 1.0 if k == n else float(special.betaincinv(k + 0.5, n - k + 0.5, 1 - tail))
    return Estimate(value=k / n, low=low, high=high, n=n, level=level, estimator=name)


def poisson_rate(k: int, exposure: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a rate from k events in `exposure` units, chi2 quantiles / (2 exposure) (Garwood 1936)."""
    if k < 0 or exposure <= 0:
        raise ValueError(f"k={k} events in {exposure}")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(stats.chi2.ppf(tail, 2 * k)) / 2
    return low / exposure, float(stats.chi2.ppf(1 - tail, 2 * k + 2)) / 2 / exposure


def clustered_mean(correct: Sequence[int], samples: Sequence[int]) -> tuple[float, float | None]:
    """Avg@k over questions and its question-clustered standard error.

    score = mean_q c_q / n_q, SE = SD_q / sqrt(Q): samples of one question share its difficulty and count as one unit.
    """
    n = np.asarray(samples, dtype=float)
    share = np.asarray(correct, dtype=float)[n > 0] / n[n > 0]
    if len(share) == 0:
        raise ValueError("no question was answered")
    se = float(share.std(ddof=1) / np.sqrt(len(share))) if len(share) > 1 else None
    return float(share.mean()), se


def variance_components(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float | int | None]:
    """SD within and between clusters (cold starts) by one-way ANOVA moments; None where not estimable.

    within^2 = MSW; between^2 = max(0, (MSB - MSW) / n0), n0 = (N - sum n_i^2 / N) / (a - 1).
    """
    groups: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    total, num = len(values), len(groups)
    empty: dict[str, float | int | None] = {"n": total, "clusters": num, "sd_within": None, "sd_between": None}
    if num < 2 or total - num < 1:
        return empty
    grand = float(np.mean(values))
    msw = sum(float(np.sum((np.array(g) - np.mean(g)) ** 2)) for g in groups.values()) / (total - num)
    msb = sum(len(g) * (float(np.mean(g)) - grand) ** 2 for g in groups.values()) / (num - 1)
    n0 = (total - sum(len(g) ** 2 for g in groups.values()) / total) / (num - 1)
    return {**empty, "sd_within": float(np.sqrt(msw)), "sd_between": float(np.sqrt(max(0.0, (msb - msw) / n0)))}
