"""What a study needs before it is run: seeds, questions, groups with a signal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special, stats

from harness.stats.collapse import barnard_p
from harness.stats.paired import sd_quadrature


def tost_power(sd: float, n: int, delta: float, alpha: float = 0.05, true: float = 0.0) -> float:
    """P(TOST at `alpha` finds |difference| < delta) for n pairs with SD `sd` and a true difference."""
    if n < 3 or sd < 0:
        return 0.0
    if sd == 0:
        return float(abs(true) < delta)
    spread, weights = sd_quadrature(n)  # sample SD / SD
    se = sd / np.sqrt(n)
    room = delta - _critical(n, alpha) * spread * se
    inside = special.ndtr((room - true) / se) - special.ndtr((-room - true) / se)
    return float(weights @ np.clip(inside, 0.0, None))


@lru_cache(maxsize=4096)
def _critical(n: int, alpha: float) -> float:
    return float(special.stdtrit(n - 1, 1 - alpha))


def tost_pairs_needed(
    sd: float, delta: float, alpha: float = 0.05, power: float = 0.8, limit: int = 10_000
) -> int | None:
    """Smallest number of pairs that shows equivalence within +-delta when there is none; None above `limit`."""
    low, high = 3, limit
    if tost_power(sd, high, delta, alpha) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        reached = tost_power(sd, middle, delta, alpha) >= power
        low, high = (low, middle) if reached else (middle + 1, high)
    return low


def informative_groups(pass_rates: Sequence[float], siblings: int) -> float:
    """Expected share of groups whose rewards differ, mean over questions of 1 - p^G - (1 - p)^G.

    A group without variance has no advantage under any group-relative algorithm. Feed the pass rate of every question:
    the rate of their mean overstates the share, since the function is concave in p.
    """
    p = np.asarray(pass_rates, dtype=float)
    if not len(p) or p.min() < 0 or p.max() > 1 or siblings < 1:
        raise ValueError(f"pass rates in [0, 1] and at least one sibling are needed, got {siblings}")
    return float(np.mean(1 - p**siblings - (1 - p) ** siblings))


def beta_rates(correct: Sequence[int], samples: int, points: int = 99) -> np.ndarray:
    """Pass rates of questions, from a beta distribution with the moments of c/n corrected for sampling noise.

    With k samples per question the raw shares c/k spread more than the rates do, which understates the informative
    share for larger groups.
    """
    share = np.asarray(correct, dtype=float) / samples
    mean = float(share.mean())
    if samples < 2 or mean in (0.0, 1.0):
        return np.full(points, mean)
    between = float(share.var()) - float(np.mean(share * (1 - share))) / (samples - 1)
    between = min(max(between, 1e-6), 0.999 * mean * (1 - mean))
    weight = mean * (1 - mean) / between - 1
    grid = (np.arange(points) + 0.5) / points
    return np.asarray(stats.beta.ppf(grid, max(1e-3, mean * weight), max(1e-3, (1 - mean) * weight)))


def questions_needed(effect: float, sd: float = 0.5, alpha: float = 0.05, power: float = 0.8) -> int:
    """Questions for a paired difference of `effect` between two fixed policies, (z_a + z_b)^2 sd^2 / effect^2.

    `sd` is that of the per-question difference (Miller, 2411.00640).
    """
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return int(np.ceil((z * sd / effect) ** 2))


def questions_for_noise(mean: float, seed_sd: float, samples: int = 1, limit: float = 1 / 3) -> int:
    """Questions for which the evaluation's SE stays at `limit` of the seed SD, worst case of Bernoulli questions.

    Above a third a comparison is measurement-limited, and more seeds do not help.
    """
    variance = mean * (1 - mean) / samples
    return max(1, int(np.ceil(variance / (limit * seed_sd) ** 2)))


def collapse_power(rate_a: float, rate_b: float, n: int, alpha: float = 0.05) -> float:
    """Power of Barnard's exact test for two collapse rates with n runs each, summed over all outcomes."""
    k = np.arange(n + 1)
    a, b = stats.binom.pmf(k, n, rate_a), stats.binom.pmf(k, n, rate_b)
    return float(
        sum(a[i] * b[j] for i in k for j in k if a[i] * b[j] > 1e-9 and (barnard_p(int(i), n, int(j), n) or 1) < alpha)
    )
