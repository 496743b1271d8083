"""Routes through a mixture of experts: how much they move, what a replay costs, and where it happens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.core.routing_log import RoutingRecord, read_routing
from harness.report import text
from harness.report.collect import values
from harness.report.figures import MUTED, Plot
from harness.report.tables import Notes, Table, arm_cell, by_group, cell, make_table
from harness.stats.estimate import mean_t

if TYPE_CHECKING:
    from harness.core.results import RunFolder

BINS = 40  # columns of the heat map
MODES = {"off": "free", "r2": "R2: the trainer's", "r3": "R3: the sampler's"}
COLUMNS = (
    ("New choices", "selections", "fraction"), ("Tokens touched", "anywhere", "fraction"),
    ("One step, fixed tokens", "expert_change", "fraction"), ("Since the start", "since_start", "fraction"),
    ("Engine and trainer differ", "sampler", "fraction"), ("Gaps", "gap_tokens", "count"),
    ("Replay, KiB per step", "replay_bytes", "number"), ("Step", "t_step", "seconds"),
)  # fmt: skip
KIB = 2**10
COLOURS: dict[str, Any] = {"cmap": "viridis", "edgecolors": "face", "linewidth": 0.3}


def routing_facts(runs: Mapping[str, Sequence[RunFolder]], counted: Collection[str]) -> dict[str, Any]:
    """Arm -> mode, estimates over counted runs, and the heat map of expert change; empty for dense models."""
    found = {}
    for arm, members in runs.items():
        kept = [(r, records) for r in members if r.path.name in counted and (records := read_routing(r.path))]
        if kept:
            found[arm] = _facts(kept)
    return found


def _facts(runs: Sequence[tuple[RunFolder, list[RoutingRecord]]]) -> dict[str, Any]:
    columns = {key: [_of_run(key, run, records) for run, records in runs] for _, key, _ in COLUMNS}
    first = runs[0][1][0]
    return {
        "mode": first.mode,
        "layers": len(first.max_vio),
        "bytes_per_token": first.bytes_per_token if first.mode != "off" else 0,
        "estimates": {k: mean_t([v for v in column if v is not None]).as_dict() for k, column in columns.items()},
        "heat": _heat([records for _, records in runs]),
    }


def _of_run(key: str, run: RunFolder, records: Sequence[RoutingRecord]) -> float | None:
    """One number of one run: the mean over steps (and layers), of updates the step's last, of gaps the sum."""
    if key == "t_step":
        return _mean([x for x in values(run.steps, "perf/t_step") if x is not None])
    if key == "gap_tokens":
        counts = [r.gap_tokens for r in records if r.gap_tokens is not None]
        return float(sum(counts)) if counts else None
    if key == "replay_bytes":
        return _mean([r.replay_bytes / KIB for r in records])
    if key == "selections":
        return _mean([_mean(r.selections[-1]) for r in records if r.selections])
    if key == "anywhere":
        return _mean([r.anywhere[-1] for r in records if r.anywhere])
    return _mean([_mean(row) for r in records if (row := getattr(r, key)) is not None])


def _mean(found: Sequence[float | None]) -> float | None:
    known = [x for x in found if x is not None]
    return sum(known) / len(known) if known else None


def _heat(runs: Sequence[Sequence[RoutingRecord]]) -> dict[str, Any] | None:
    """Mean expert change by layer and bin of steps, over the runs."""
    seen = [(r.step, r.expert_change) for records in runs for r in records if r.expert_change is not None]
    if not seen:
        return None
    last = max(step for step, _ in seen)
    bins = min(BINS, last)
    total, count = np.zeros((len(seen[0][1]), bins)), np.zeros(bins)
    for step, change in seen:
        at = (step - 1) * bins // last
        total[:, at] += change
        count[at] += 1
    with np.errstate(invalid="ignore"):
        mean = total / count
    return {"last_step": last, "change": [[None if np.isnan(x) else round(float(x), 6) for x in row] for row in mean]}


def routing(report: Mapping[str, Any]) -> Table:
    """A row per arm on a mixture of experts; no rows elsewhere."""
    notes, groups = Notes(), []
    for g, arms in by_group(report):
        rows = []
        for a in arms:
            facts = report["routing"].get(a["name"])
            if facts is None:
                continue
            row = [arm_cell(a), cell(MODES[facts["mode"]], _per_token(facts))]
            for _, key, kind in COLUMNS:
                estimate = facts["estimates"][key]
                known = estimate["value"] is not None
                row.append(notes.value(estimate, kind) if known else notes.missing(_why(key)))
            rows.append(row)
        groups.append((g["title"], rows))
    return make_table(["Arm", "Replayed routes", *(title for title, _, _ in COLUMNS)], groups, notes.listed())


def _per_token(facts: Mapping[str, Any]) -> str:
    return f"{facts['bytes_per_token']} bytes/token" if facts["bytes_per_token"] else ""


def _why(key: str) -> str:
    return {
        "sampler": "the sampler does not tell its routes", "gap_tokens": "not in float32 on both sides",
        "selections": "one update per rollout batch", "anywhere": "one update per rollout batch",
    }.get(key, "not recorded")  # fmt: skip


def heat_map(report: Mapping[str, Any]) -> Plot | None:
    """P15: layer x step, share of choices that one optimizer step changes on fixed tokens; a panel per arm."""
    maps = {arm: f["heat"] for arm, f in report["routing"].items() if f["heat"] is not None}
    if not maps:
        return None
    top = max(x for heat in maps.values() for row in heat["change"] for x in row if x is not None) or 1.0
    layers = max(len(heat["change"]) for heat in maps.values())
    height = 0.42 + 0.13 * layers  # of a panel, inches
    columns = 2 if len(maps) > 1 else 1
    lines = -(-len(maps) // columns)
    size = (4.4 * columns + 0.35, lines * (height + 0.55) + 0.3)

    def draw(figure: Figure) -> None:
        for i, (arm, heat) in enumerate(maps.items()):
            left = (0.5 + 4.3 * (i % columns)) / size[0]
            bottom = 1 - ((i // columns + 1) * (height + 0.55) - 0.33) / size[1]
            _panel(figure.add_axes((left, bottom, 3.6 / size[0], height / size[1])), arm, heat, top)
        _scale(figure.add_axes((1 - 0.5 / size[0], 0.25, 0.1 / size[0], 0.55)), top)

    return Plot(name="expert-change", alt="Heat map of expert change by layer and step, a panel per arm",
                size=size, draw=draw)  # fmt: skip


def _panel(axes: Axes, arm: str, heat: Mapping[str, Any], top: float) -> None:
    grid = np.array([[np.nan if x is None else x for x in row] for row in heat["change"]])
    edges = np.linspace(0, heat["last_step"], grid.shape[1] + 1)
    axes.pcolormesh(edges, np.arange(len(grid) + 1) + 0.5, grid, vmin=0, vmax=top, **COLOURS)
    axes.set_title(arm, fontsize=8.5, loc="left", color=MUTED)
    axes.set_yticks(sorted({1, len(grid)}))
    axes.set_ylabel("Layer", fontsize=8)
    axes.set_xlabel("Step", fontsize=8, labelpad=1)
    axes.tick_params(labelsize=7)
    axes.grid(visible=False)


def _scale(axes: Axes, top: float) -> None:
    """The colour bar, out of cells: matplotlib's own is a picture, which the page's policy keeps out."""
    edges = np.linspace(0, top, 33)
    axes.pcolormesh([0, 1], edges, edges[:-1, None], vmin=0, vmax=top, **COLOURS)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_major_formatter(lambda value, _: text.fraction(value))
    axes.tick_params(labelsize=7)
    axes.grid(visible=False)
