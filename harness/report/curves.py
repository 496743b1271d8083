"""Curves as data: per run and per arm, with t bands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.columns import StepColumns
from harness.core.metrics import BY_KEY
from harness.core.results import COMPONENT
from harness.report.collect import curve, values
from harness.stats.estimate import mean_t

if TYPE_CHECKING:
    from harness.core.results import RunFolder

SMOOTH = 20  # a panel's mean is a running mean over a twentieth of the run
MAX_POINTS, MIN_POINTS = 200, 20  # per line; longer runs are thinned by taking the mean of neighbouring steps
POINTS = 6000  # of all lines of a panel together, so that a study of a hundred runs is still a small page
LEARNING_POINTS = 25
MAX_COMPONENTS = 6  # parts of the task's reward that are drawn
AXES = ("sampled_tokens", "step", "trained_tokens", "wallclock_s")  # the first is the primary budget

# key in the metric dictionary, column, title, log axis, absolute limit of the detector that reads it
PANELS: tuple[tuple[str, str, str, bool, float | None], ...] = (
    ("reward/mean", "reward/mean", "Training reward", False, None),
    ("entropy/exact", "entropy/exact", "Entropy", False, 0.05),
    ("kl_old/k3", "kl_old/k3/last", "KL to the old policy (k3)", True, None),
    ("kl_ref/k3", "kl_ref/k3", "KL to the reference policy (k3)", True, 0.5),
    ("grad/norm_pre", "grad/norm_pre/max", "Gradient norm before clipping", True, None),
    ("clip/tok_any", "clip/tok_any/last", "Clipped tokens", True, None),
    ("clip/seq_any", "clip/seq_any/last", "Rows with a clipped token", True, None),
    ("ratio/ess_tok", "ratio/ess_tok/last", "Effective sample size", False, 0.3),
    ("len/mean", "len/mean", "Response length, mean", False, None),
    ("len/p50", "len/p50", "Response length, median", False, None),
    ("len/p95", "len/p95", "Response length, 95 % quantile", False, None),
    ("len/trunc_rate", "len/trunc_rate", "Truncated responses", False, 0.3),
    ("text/rep_rate", "text/rep_rate", "Repetitive responses", False, 0.2),
    ("signal/zero_var_frac", "signal/zero_var_frac", "Groups without signal", False, 0.95),
    ("value/explained_var", "value/explained_var", "Explained variance of the critic", False, 0.0),
    ("mismatch/k3", "mismatch/k3", "Sampler-trainer mismatch (k3)", True, 0.05),
)
OPTIONAL = (
    "len/p50",
    "len/p95",
    "text/rep_rate",
    "kl_ref/k3",
    "value/explained_var",
    "mismatch/k3",
)  # no panel where no arm has them


def round6(value: float | None) -> float | None:
    """Six significant digits: enough for a plot, and a small file."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def pick_split(runs: Sequence[RunFolder]) -> str:
    """The split the learning curves use: validation, or test where nothing was evaluated during training."""
    return "validation" if any(e.split == "validation" for r in runs for e in r.evals) else "test"


def learning_curves(runs: Mapping[str, Sequence[RunFolder]], split: str, counted: Collection[str]) -> dict[str, Any]:
    """Arm -> {runs: [...], mean: {step: ..., sampled_tokens: ...}} of the held-out score.

    Means are over counted runs; an arm that has none is averaged over what it has so far.
    """
    arms: dict[str, Any] = {}
    for arm, members in runs.items():
        lines: list[dict[str, Any]] = [
            {"run": r.path.name, "seed": r.spec.seed, "counted": r.path.name in counted, **curve(r, split)}
            for r in members
        ]
        lines = [line for line in lines if line["score"]]
        averaged = [ln for ln in lines if ln["counted"]] or lines
        arms[arm] = {
            "runs": lines,
            "mean": {axis: _band([(ln[axis], ln["score"]) for ln in averaged], points=LEARNING_POINTS)
                     for axis in AXES},
        }  # fmt: skip
    return arms


def _band(lines: Sequence[tuple[Sequence[float], Sequence[float]]], points: int) -> dict[str, Any]:
    """Mean and 95 % t band of piecewise linear curves on a common grid up to the shortest of them."""
    lines = [(x, y) for x, y in lines if len(x)]  # a budget that was not recorded has no points
    if not lines:
        return {"x": [], "mean": [], "low": [], "high": [], "n": 0}
    start, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    shared = sorted(set(lines[0][0]).intersection(*(set(x) for x, _ in lines[1:])))
    grid = shared if shared and shared[-1] == end else list(np.linspace(start, end, points)) if end > start else [end]
    table = np.array([np.interp(grid, x, y) for x, y in lines])
    found = [mean_t(list(column)) for column in table.T]
    return {
        "x": [round6(float(g)) for g in grid],
        "mean": [round6(e.value) for e in found],
        "low": [round6(e.low) for e in found],
        "high": [round6(e.high) for e in found],
        "n": len(lines),
    }


def axis_rankings(curves: Mapping[str, Any], compared: Collection[str]) -> dict[str, Any]:
    """Axis -> mean scores of the arms at the largest budget that all their runs reached, and flips.

    A flip is a pair of arms whose order differs from that at equal sampled tokens.
    """
    found: dict[str, Any] = {}
    for axis in AXES:
        means = {a: c["mean"][axis] for a, c in curves.items() if a in compared and c["mean"][axis]["x"]}
        if len(means) < 2:
            continue
        end = min(m["x"][-1] for m in means.values())
        at = {a: float(np.interp(end, m["x"], m["mean"])) for a, m in means.items()}
        order = sorted(at, key=lambda a: -at[a])
        found[axis] = {"budget": end, "order": [{"arm": a, "score": round6(at[a])} for a in order], "flips": []}
    primary = [row["arm"] for row in found.get(AXES[0], {}).get("order", [])]
    for ranking in found.values():
        names = [row["arm"] for row in ranking["order"] if row["arm"] in primary]
        ranking["flips"] = [
            [a, b] for i, a in enumerate(names) for b in names[i + 1 :] if primary.index(a) > primary.index(b)
        ]
    return found


def panels(runs: Mapping[str, Sequence[RunFolder]]) -> list[dict[str, Any]]:
    """Stability panels: one metric each, a line per run, thinned; panels without any value say why."""
    found = []
    points = min(MAX_POINTS, max(MIN_POINTS, POINTS // max(1, sum(len(members) for members in runs.values()))))
    for key, column, title, log, limit in PANELS:
        metric = BY_KEY[key]
        lines: dict[str, Any] = {}
        for arm, members in runs.items():
            kept = [line for line in (_line(r, column, points) for r in members) if line is not None]
            if kept:
                lines[arm] = kept
        if not lines and key in OPTIONAL:
            continue
        means = {arm: _panel_mean(kept) for arm, kept in lines.items()}
        absent = [arm for arm in runs if arm not in lines]
        found.append({
            "key": key, "column": column, "title": title, "unit": metric.unit, "log": log, "limit": limit,
            "arms": lines, "means": means,
            "absent": absent, "why_absent": metric.not_applicable or "not recorded",
        })  # fmt: skip
    return found


def component_panels(runs: Mapping[str, Sequence[RunFolder]]) -> list[dict[str, Any]]:
    """The parts of the task's reward, as panels."""
    found = []
    points = min(MAX_POINTS, max(MIN_POINTS, POINTS // max(1, sum(len(members) for members in runs.values()))))
    names = sorted({key for members in runs.values() for r in members for key in _components(r)})
    for column in names[:MAX_COMPONENTS]:
        lines = {
            arm: kept for arm, members in runs.items()
            if (kept := [ln for r in members if column in _components(r) and (ln := _line(r, column, points))])
        }  # fmt: skip
        found.append({
            "key": column, "column": column, "title": "Part of the reward", "unit": column.removeprefix(COMPONENT),
            "log": False, "limit": None, "arms": lines,
            "means": {arm: _panel_mean(kept) for arm, kept in lines.items()},
            "absent": [arm for arm in runs if arm not in lines], "why_absent": "not recorded",
        })  # fmt: skip
    return found


def _components(run: RunFolder) -> list[str]:
    keys = run.steps.keys() if isinstance(run.steps, StepColumns) else run.steps[0] if run.steps else ()
    return [key for key in keys if key.startswith(COMPONENT)]


def _panel_mean(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over the runs of an arm at each step, then a centred running mean; for reading, not for testing."""
    by_step: dict[float, list[float]] = {}
    for line in lines:
        for x, y in zip(line["x"], line["y"], strict=True):
            if y is not None:
                by_step.setdefault(x, []).append(y)
    steps = sorted(by_step)
    raw = np.array([np.mean(by_step[x]) for x in steps])
    half = len(raw) // (2 * SMOOTH)
    smooth = [float(raw[max(0, i - half) : i + half + 1].mean()) for i in range(len(raw))]
    return {"x": steps, "y": [round6(v) for v in smooth], "window": 2 * half + 1}


def _line(run: RunFolder, column: str, points: int) -> dict[str, Any] | None:
    y = values(run.steps, column)
    if all(v is None for v in y):
        return None
    x = [v for v in values(run.steps, "step") if v is not None]
    width = int(np.ceil(len(x) / points))
    if width > 1:
        x, y = _thin(x, y, width)
    return {"run": run.path.name, "seed": run.spec.seed, "x": x, "y": [round6(v) for v in y]}


def _thin(x: list[float], y: list[float | None], width: int) -> tuple[list[float], list[float | None]]:
    chunks = range(0, len(x), width)
    known = [[v for v in y[i : i + width] if v is not None] for i in chunks]
    return [x[min(i + width, len(x)) - 1] for i in chunks], [float(np.mean(k)) if k else None for k in known]
