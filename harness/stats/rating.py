"""A rating on the Elo scale from problems whose difficulty is rated."""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

from harness.stats.estimate import Estimate

SCALE = 400 / np.log(10)  # rating points per unit of log odds
REACH = 6000.0  # rating points beyond the easiest and hardest problem within which a bound is looked for


def rating(ratings: list[float], solved: list[float], level: float = 0.95) -> Estimate:
    """R that maximises sum_i y_i log p_i + (1 - y_i) log(1 - p_i), p_i = 1 / (1 + 10^((r_i - R) / 400)).

    y_i in [0, 1] is the share of a problem's samples that solve it, so a problem counts once (a cluster); the interval
    holds every R whose log-likelihood is within chi2(1) / 2 of the highest. Where nothing is solved there is no R and
    no lower end, where everything is, no upper one.
    """
    r, y = np.asarray(ratings, dtype=float), np.asarray(solved, dtype=float)
    name = "Elo scale, maximum likelihood over problems, likelihood-ratio interval"
    if len(r) == 0:
        return Estimate(value=None, n=0, level=level, estimator=name, note="no rated problem")

    def loss(at: float) -> float:
        odds = (at - r) / SCALE
        return float(np.sum(np.logaddexp(0.0, odds) - y * odds))

    low_end, high_end = float(r.min()) - REACH, float(r.max()) + REACH
    none, every = bool((y == 0).all()), bool((y == 1).all())
    if none or every:
        best, least = (low_end if none else high_end), 0.0
    else:
        found = optimize.minimize_scalar(loss, bounds=(low_end, high_end), method="bounded")
        best, least = float(found.x), float(found.fun)
    allowed = least + float(stats.chi2.ppf(level, 1)) / 2

    def end(limit: float) -> float:
        return float(optimize.brentq(lambda at: loss(at) - allowed, best, limit))

    return Estimate(
        value=None if none or every else best,
        low=None if none else end(low_end),
        high=None if every else end(high_end),
        n=len(r),
        level=level,
        estimator=name,
        note="nothing solved" if none else "everything solved" if every else None,
    )
