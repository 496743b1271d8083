"""Budget needed to reach a score; runs that never reach it are censored, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.estimate import Estimate, finite, mean_t


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """Where a curve first reaches a level; `censored` when it had not by `value` (the end of the curve)."""

    value: float
    censored: bool


def first_crossing(x: Sequence[float], y: Sequence[float | None], level: float) -> Crossing | None:
    """First x at which the piecewise linear curve reaches `level`; None for a curve without points."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and np.isfinite(b)]
    if not points:
        return None
    previous: tuple[float, float] | None = None
    for a, b in points:
        if b >= level:
            if previous is None:
                return Crossing(value=float(a), censored=False)
            x0, y0 = previous
            return Crossing(value=float(x0 + (a - x0) * (level - y0) / (b - y0)), censored=False)
        previous = (a, b)
    return Crossing(value=float(points[-1][0]), censored=True)


def restricted_mean(crossings: Sequence[Crossing], horizon: float) -> Estimate:
    """Restricted mean min(T, horizon) with a t interval.

    Every run is followed to the common horizon, so this equals the area under the Kaplan-Meier curve up to it.
    A lower bound of the mean where runs are censored.
    """
    times = [min(c.value, horizon) if not c.censored else horizon for c in crossings]
    found = mean_t(times)
    reached = sum(not c.censored and c.value <= horizon for c in crossings)
    return Estimate(
        value=found.value,
        low=None if found.low is None else max(0.0, found.low),
        high=found.high,
        n=found.n,
        estimator=f"restricted mean up to {horizon:g}, Student-t interval",
        note=f"{reached}/{len(crossings)} reached" + (f"; {found.note}" if found.note else ""),
    )


def median_crossing(crossings: Sequence[Crossing]) -> float | None:
    """Median with censored runs as later than all others; None where half or more never reach the level."""
    times = sorted(np.inf if c.censored else c.value for c in crossings)
    if not times:
        return None
    middle = float(np.median(finite(times))) if np.isfinite(times).all() else float(times[len(times) // 2])
    return middle if np.isfinite(middle) else None
