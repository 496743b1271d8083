"""recovery.json -> the HTML page: shares recovered per remedy and start point, time to recovery, and every attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.core.results import dumps, write_atomic
from harness.report.figures import INK, LINE, MUTED, Plot
from harness.report.page import Drawn, Page, Section, write_page
from harness.report.recovery import (
    EPISODE_HEAD,
    HEAD,
    HOW,
    INTERVALS,
    POINTS,
    attempt_cells,
    cells,
    episode_cells,
    markdown,
)
from harness.stats.survival import Lifetime, kaplan_meier

Data = Mapping[str, Any]
COLORS = {"last_healthy": "#0072B2", "half": "#009E73", "collapsed": "#D55E00"}
OPEN_NOTE = "Open attempts are in no count; repeating the command finishes them."


def page(r: Data) -> Page:
    """The answer first, then the figures, the table, the episodes and the attempts."""
    spec, p = r["spec"], r["provenance"]
    drawn = [Drawn(title="Episodes recovered", words="bars: share, lines: 95 % Jeffreys interval", plot=shares(r))]
    if any(a["verdict"] for a in r["attempts"]):
        drawn.append(Drawn(title="Steps until recovery", plot=times(r), words=(
            "Kaplan-Meier over attempts, censored at their end; without a band, since attempts on one episode "
            "are not independent")))  # fmt: skip
    rows = [row for row in r["rows"] if row["attempts"]]
    done = sum(row["attempts"] for row in rows)
    forced = [f"Episode {i}: {', '.join(e['in_force'])}." for i, e in enumerate(spec["episodes"]) if e["in_force"]]
    skipped = [f"Episode {s['episode']}: no {spec['remedies'][s['remedy']]}: {s['why']}." for s in spec["skipped"]]
    return Page(
        title=f"Recovery: {spec['name']}", headline=r["answer"][0] if r["answer"] else "No attempt has a verdict yet.",
        lead=" ".join([*r["answer"][1:], f"{done} of {len(r['attempts'])} attempts judged, "
                       f"{len(spec['episodes'])} collapse episode{'s' if len(spec['episodes']) != 1 else ''}."]),
        sections=[
            Section(title="At a glance", figures=drawn),
            Section(title="Start point and remedy", words=INTERVALS, rows=[HEAD, *cells(r)]),
            Section(title="Episodes", words=" ".join(forced), rows=[EPISODE_HEAD, *episode_cells(r)]),
            Section(title="Attempts", words=HOW,
                    rows=[("episode", "start", "remedy", "seed", "verdict", "score", "why", "run"), *attempt_cells(r)]),
        ],
        notes=[*skipped, OPEN_NOTE, f"harness {p['harness_version']}, numerics version {p['numerics_version']}, "
               f"Python {p['python']}, {p['cpu']}, {p['started']}."],
    )  # fmt: skip


def shares(r: Data) -> Plot:
    """P12: share of the episodes that a remedy recovers, a bar per start point, with its Jeffreys interval."""
    remedies = list(dict.fromkeys(row["remedy"] for row in r["rows"]))
    starts = [point for point in POINTS if any(row["start"] == point for row in r["rows"])]
    height = 0.9 + (0.16 + 0.17 * len(starts)) * len(remedies)
    step = 0.84 / max(1, len(starts))

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.33, 0.55 / height, 0.56, 1 - 0.8 / height))
        for row in r["rows"]:
            y = remedies.index(row["remedy"]) + (starts.index(row["start"]) - (len(starts) - 1) / 2) * step
            share, color = row["episodes"], COLORS[row["start"]]
            axes.text(1.03, y, f"{share['k']}/{share['n']}" if share["n"] else "open", va="center", fontsize=7.5,
                      color=INK if share["n"] else MUTED)  # fmt: skip
            if share["value"] is None:
                continue
            axes.barh(y, share["value"], height=0.78 * step, color=color, alpha=0.55, lw=0)
            axes.plot([share["low"], share["high"]], [y, y], color=color, lw=1.4)
            axes.plot([share["value"]], [y], "o", color=color, ms=3.2)
        axes.set_yticks(range(len(remedies)), [_name(r["spec"]["remedies"][name]) for name in remedies])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=8)
        axes.set_ylim(len(remedies) - 0.45, -0.55)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=LINE, lw=0.6)
        axes.set_xlabel("Share of collapse episodes recovered")
        _legend(figure, starts, 0.33, 1 - 0.14 / height)

    return Plot(name="recovered", alt="Share of episodes recovered per remedy and start point, with Jeffreys intervals",
                size=(5.6, height), draw=draw)  # fmt: skip


def times(r: Data) -> Plot:
    """P12: share of the attempts that have recovered, over the steps since their start."""
    judged = [a for a in r["attempts"] if a["verdict"]]
    starts = [point for point in POINTS if any(a["start"] == point for a in judged)]
    end = max((_lifetime(a).time for a in judged), default=1.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.17, 0.8, 0.69))
        for point in starts:
            km = kaplan_meier([_lifetime(a) for a in judged if a["start"] == point])
            x, y = [0.0, *km.time, end], [0.0, *(1 - s for s in km.survival)]
            axes.step(x, [*y, y[-1]], where="post", color=COLORS[point], lw=1.8)
        axes.set_ylim(0, 1.03)
        axes.set_xlim(0, end)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel("Share of attempts recovered")
        axes.set_xlabel("Steps since the restart")
        _legend(figure, starts, 0.13, 0.94)

    return Plot(name="time-to-recovery", alt="Kaplan-Meier share recovered over steps, a line per start point",
                size=(5.6, 3.2), draw=draw)  # fmt: skip


def _lifetime(attempt: Data) -> Lifetime:
    won = attempt["verdict"] == "recovered"
    return Lifetime(time=float((attempt["recovered_after"] if won else attempt["steps"]) or 0), observed=won)


def _legend(figure: Figure, starts: Sequence[str], left: float, y: float) -> None:
    for i, point in enumerate(starts):
        figure.text(left + 0.2 * i, y, "\u25a0", color=COLORS[point], fontsize=9, va="center")
        figure.text(left + 0.2 * i + 0.025, y, POINTS[point], fontsize=8, color=INK, va="center")


def _name(remedy: str) -> str:
    return remedy if len(remedy) <= 30 else f"{remedy[:29]}\u2026"


def write_recovery(folder: Path, record: Data) -> dict[str, Path]:
    """Writes recovery.json into `folder`, and from what it holds recovery.md, .html and the figures."""
    source = dumps(record)
    write_atomic(folder / "recovery.json", source + "\n")
    return {"json": folder / "recovery.json", **render_recovery(json.loads(source), folder)}


def render_recovery(known: Data, folder: Path) -> dict[str, Path]:
    """Every format but the JSON."""
    write_atomic(folder / "recovery.md", markdown(known))
    return {"md": folder / "recovery.md", **write_page(page(known), folder, "recovery")}
