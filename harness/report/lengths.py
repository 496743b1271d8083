"""Noise of the ratio over response length, pooled over the steps of a run: what claims on length rest on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.columns import StepColumns
from harness.core.metrics import BY_LENGTH
from harness.report.collect import values
from harness.stats.estimate import mean_t

if TYPE_CHECKING:
    from harness.core.results import RunFolder

ROWS = 50  # of a bin over a run; fewer say little about a standard deviation
BINS = 3  # the least that a slope is fitted to
NOISES: Mapping[str, str] = {
    "full_logsd": "SD of the summed log ratio",
    "geo_logsd": "SD of the mean log ratio",
    "ess_lost": "1 \u2212 token ESS",
}


def ratio_by_length(runs: Mapping[str, Sequence[RunFolder]], counted: Collection[str]) -> dict[str, Any]:
    """Arm -> {bins: [{upper, middle, rows, one estimate per noise}], slopes: noise -> d log noise / d log length}.

    Means over counted runs of logarithms; arms whose step log has no lengths are left out.
    """
    found: dict[str, Any] = {}
    for arm, members in runs.items():
        tables = {r.path.name: t for r in members if r.path.name in counted and (t := _pooled(r))}
        if tables:
            found[arm] = {"bins": _bins(tables), "slopes": {name: _slope(tables, name) for name in NOISES}}
    return found


Pooled = dict[int, dict[str, float]]  # upper end of a bin -> rows and noises


def _pooled(run: RunFolder) -> Pooled:
    """Variances within the steps, weighted by their degrees of freedom, so that drift between steps is no noise."""
    keys = run.steps.keys() if isinstance(run.steps, StepColumns) else {key for row in run.steps for key in row}
    found: Pooled = {}
    for upper in sorted({int(k.split("/")[2]) for k in keys if k.startswith(BY_LENGTH)}):
        rows, full, geo, ess = (
            np.array([np.nan if v is None else v for v in values(run.steps, f"{BY_LENGTH}{upper}/{name}")])
            for name in ("rows", "full_logsd", "geo_logsd", "ess_tok")
        )
        known = np.isfinite(rows) & np.isfinite(full) & np.isfinite(geo) & np.isfinite(ess)
        n = rows[known]
        if n.sum() < ROWS:
            continue
        found[upper] = {
            "rows": float(n.sum()),
            "full_logsd": _sd(n, full[known]),
            "geo_logsd": _sd(n, geo[known]),
            "ess_lost": float((n * (1 - ess[known])).sum() / n.sum()),
        }
    return found


def _sd(n: np.ndarray, sd: np.ndarray) -> float:
    return float(np.sqrt((n * sd**2).sum() / (n - 1).sum()))


def _bins(tables: Mapping[str, Pooled]) -> list[dict[str, Any]]:
    uppers = sorted({upper for table in tables.values() for upper in table})
    return [
        {"upper": upper, "middle": upper / 2**0.5, "rows": sum(t[upper]["rows"] for t in tables.values() if upper in t),
         **{name: _geometric({run: t[upper][name] for run, t in tables.items() if upper in t}) for name in NOISES}}
        for upper in uppers
    ]  # fmt: skip


def _geometric(by_run: Mapping[str, float]) -> dict[str, Any]:
    """Geometric mean over runs; the t interval is that of the logarithm."""
    kept = {run: v for run, v in by_run.items() if v > 0}
    found = mean_t([float(np.log(v)) for v in kept.values()]).as_dict()
    ends = {k: None if found[k] is None else float(np.exp(found[k])) for k in ("value", "low", "high")}
    return {**found, **ends, "estimator": "geometric mean over runs, Student-t interval of the log", "runs": [*kept]}


def _slope(tables: Mapping[str, Pooled], name: str) -> dict[str, Any]:
    """Mean over runs of the weighted least-squares slope of log noise on log length (weights: degrees of freedom)."""
    slopes: dict[str, float] = {}
    for run, table in tables.items():
        kept = {upper: row for upper, row in table.items() if row[name] > 0}
        if len(kept) >= BINS:
            weights = np.sqrt([row["rows"] - 1 for row in kept.values()])
            fit = np.polyfit(np.log([*kept]), np.log([row[name] for row in kept.values()]), 1, w=weights)
            slopes[run] = float(fit[0])
    found = mean_t(list(slopes.values())).as_dict()
    note = found["note"] if slopes else f"fewer than {BINS} lengths with {ROWS} rows"
    return {**found, "note": note, "estimator": "mean over runs of the log-log slope, Student-t interval",
            "runs": [*slopes]}  # fmt: skip
