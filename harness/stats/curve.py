"""Whole learning curves: area, drawdown, dispersion, compute fits; and the risk over runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats.estimate import Estimate, finite, mean_t

SKIP, HOLD_OUT = 0.125, 0.25  # shares of the curve left out of a fit: its start, and its end as a test
WIDEST = 0.1  # widest interval of an asymptote that is worth saying


def area(x: Sequence[float], y: Sequence[float | None], start: float, end: float, *, log: bool = True) -> float | None:
    """Mean height between two budgets of the curve through the points, by default as drawn over log x: area / range.

    Trapezoids on the axis that is integrated over. None where the curve does not cover the range, or is empty.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and np.isfinite(b) and (a > 0 or not log)]
    if not points or not 0 < start < end or points[0][0] > start or points[-1][0] < end * (1 - 1e-9):
        return None
    xs, ys = (np.array(c, dtype=float) for c in zip(*points, strict=True))
    grid = np.concatenate([[start], xs[(xs > start) & (xs < end)], [end]])
    axis, at = (np.log(grid), np.log(xs)) if log else (grid, xs)
    return float(np.trapezoid(np.interp(axis, at, ys), axis) / (axis[-1] - axis[0]))


def drawdown(y: Sequence[float | None]) -> float | None:
    """Largest fall from a running maximum."""
    kept = finite(y)
    return float((np.maximum.accumulate(kept) - kept).max()) if len(kept) else None


def dispersion(y: Sequence[float | None]) -> float | None:
    """Dispersion across time: interquartile range of the first differences of a curve (Chan et al. 1912.05663)."""
    steps = np.diff(finite(y))
    return float(np.subtract(*np.percentile(steps, [75, 25]))) if len(steps) > 1 else None


def tail_risk(scores: Sequence[float | None], share: float = 0.25) -> float | None:
    """CVaR: mean of the worst quarter of the runs (at least one)."""
    kept = np.sort(finite(scores))
    return float(kept[: max(1, int(np.ceil(share * len(kept))))].mean()) if len(kept) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B) fitted to one run."""

    start: float  # R0, the first score
    asymptote: float  # A
    exponent: float  # B
    midpoint: float  # C_mid
    largest: float  # largest C seen
    error: float | None  # mean absolute error on the last quarter, which a second fit did not see

    def at(self, compute: Sequence[float]) -> np.ndarray:
        """The fitted scores."""
        return _sigmoid(np.asarray(compute, dtype=float), self.start, self.asymptote, self.exponent, self.midpoint)


def _sigmoid(c: np.ndarray, start: float, top: float, exponent: float, middle: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(start + (top - start) / (1 + (middle / c) ** exponent))


def fit_sigmoid(compute: Sequence[float], score: Sequence[float | None]) -> Fit | None:
    """Bounded least squares on one run (form of ScaleRL, 2510.13786); the first eighth of the compute is left out.

    None below six usable points.
    """
    points = [(c, s) for c, s in zip(compute, score, strict=True) if c > 0 and s is not None and np.isfinite(s)]
    known = [s for s in score if s is not None and np.isfinite(s)]
    if not points:
        return None
    c, s = (np.array(v, dtype=float) for v in zip(*points, strict=True))
    kept = c >= SKIP * c.max()
    if kept.sum() < 6:
        return None
    c, s, start = c[kept], s[kept], float(known[0])
    early = c <= (1 - HOLD_OUT) * c.max()
    error = None
    if early.sum() >= 4 and (~early).sum() >= 1:
        test = _solve(c[early], s[early], start)
        error = float(np.abs(_sigmoid(c[~early], start, *test) - s[~early]).mean())
    top, exponent, middle = _solve(c, s, start)
    return Fit(start=start, asymptote=top, exponent=exponent, midpoint=middle, largest=float(c.max()), error=error)


def _solve(c: np.ndarray, s: np.ndarray, start: float) -> tuple[float, float, float]:
    """Bounded least squares: A in [0, 1] in closed form on grids of (log B, log C_mid) that close in on the best."""
    exponents = np.linspace(np.log(0.2), np.log(10.0), 25)
    middles = np.linspace(np.log(c.min() / 30), np.log(c.max() * 30), 49)
    while True:
        shape = 1 / (1 + np.exp(np.exp(exponents)[:, None, None] * (middles[:, None] - np.log(c))).clip(max=1e30))
        square = (shape**2).sum(-1)
        rise = np.clip((shape * (s - start)).sum(-1) / np.maximum(square, 1e-300), -start, 1 - start)
        cost = ((start + rise[..., None] * shape - s) ** 2).sum(-1)
        i, j = np.unravel_index(int(cost.argmin()), cost.shape)
        step_e, step_m = float(np.diff(exponents).max()), float(np.diff(middles).max())
        if step_m < 1e-4:
            return float(start + rise[i, j]), float(np.exp(exponents[i])), float(np.exp(middles[j]))
        around = np.linspace(exponents[i] - step_e, exponents[i] + step_e, 9)
        exponents = np.clip(around, np.log(0.2), np.log(10.0))
        middles = np.linspace(middles[j] - step_m, middles[j] + step_m, 9)


def asymptote(fits: Sequence[Fit]) -> Estimate:
    """Mean asymptote over runs, or the reason why none is said.

    Refused below three runs, where the largest compute is under twice the midpoint of any run, or where the interval
    is wider than 0.1: then the curves do not determine it.
    """
    found = mean_t([f.asymptote for f in fits])
    name = "asymptote of a sigmoidal fit per run, mean over runs, Student-t interval"
    reason = None
    if found.low is None or found.high is None:
        reason = found.note or "no fit"
    elif any(f.largest < 2 * f.midpoint for f in fits):
        reason = "refused: the largest compute is under twice the midpoint of a fit"
    elif found.high - found.low > WIDEST:
        reason = f"refused: its interval is {found.high - found.low:.2f} wide (limit {WIDEST})"
    if reason is not None:
        return Estimate(value=None, n=found.n, estimator=name, note=reason)
    return Estimate(value=found.value, low=found.low, high=found.high, n=found.n, estimator=name)
