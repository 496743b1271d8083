"""Figures of an ablation: effects with intervals, the matrix of interactions, Shapley values, and all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report import text
from harness.report.ablation import interaction_matrix
from harness.report.figures import INK, LINE, MUTED, Plot
from harness.report.page import Drawn

Data = Mapping[str, Any]
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
WIDTH = 5.2
NOTHING = 1e-9  # an effect of rounding only
SHOWN = {"score": "Held-out score", "length": "Response tokens", "sampled_tokens": "Sampled tokens"}


def effect_plots(r: Data) -> list[Drawn]:
    """P10: main effects, interactions, Shapley values, cells; those that have data."""
    found = []
    if any(e["score"] for e in r["effects"]):
        found.append(Drawn(title="Main effects", words="level minus reference, 95 % intervals", plot=main_effects(r)))
    if any(e["collapse"]["k"] or e["collapse"]["k_reference"] for e in r["effects"]):
        found.append(Drawn(title="Collapses", words="share of runs at the level and at its reference",
                           plot=collapses(r)))  # fmt: skip
    if interaction_matrix(r["fits"]["score"]["effects"])[1]:
        found.append(Drawn(title="Interactions", words="change of the row's effect; bold: Holm p < 0.05",
                           plot=interactions(r)))  # fmt: skip
    if r["shapley"] or r["single"]:
        found.append(Drawn(title="Components", words="left out, added alone, Shapley value", plot=components(r)))
    if any(c["score"]["value"] is not None for c in r["cells"]):
        found.append(Drawn(title="Cells", words="mean score; hollow: with a collapse", plot=cells(r)))
    return found


def _rows(axes: Axes, labels: Sequence[str], *, zero: bool = True) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=LINE, lw=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if zero:
        axes.axvline(0, color=MUTED, lw=0.8)


def _left(labels: Sequence[str], width: float) -> float:
    """Share of the width that the longest label takes."""
    return min(0.6, 0.03 + 0.08 * max(map(len, labels)) / width)


def _bar(axes: Axes, e: Data | None, y: float, color: str, marker: str = "o") -> None:
    if e is None or e.get("value") is None:
        return
    if e.get("low") is not None:
        axes.plot([e["low"], e["high"]], [y, y], color=color, lw=1.6)
    axes.plot([e["value"]], [y], marker, color=color, ms=5)


def main_effects(r: Data) -> Plot:
    """A row per level, a panel per response."""
    labels = [f"{e['factor']}: {e['level']}" for e in r["effects"]]
    kinds = [k for k in SHOWN if any(e[k] and abs(e[k]["value"]) > NOTHING for e in r["effects"])] or ["score"]
    height = 0.8 + 0.3 * len(labels)

    def draw(figure: Figure) -> None:
        left, bottom = _left(labels, 8.4), 0.5 / height
        width = (0.98 - left) / len(kinds)
        for i, kind in enumerate(kinds):
            axes = figure.add_axes((left + i * width, bottom, width - 0.03, 0.94 - bottom))
            for y, e in ((y, e) for y, e in enumerate(r["effects"]) if e[kind] is not None):
                sure = e[kind]["p_adjusted"] < 0.05
                _bar(axes, e[kind], y, (BLUE if e[kind]["value"] >= 0 else ORANGE) if sure else MUTED)
            _rows(axes, labels if i == 0 else [""] * len(labels))
            axes.set_xlabel(SHOWN[kind])
            form = text.count if kind == "sampled_tokens" else text.number
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _, form=form: form(v) if v else "0"))

    return Plot(name="effects", alt="Main effects of every factor with intervals", size=(8.4, height), draw=draw)


def collapses(r: Data) -> Plot:
    """Share of collapsed runs at every level and at its reference."""
    rows = [e["collapse"] for e in r["effects"]]
    labels = [f"{c['factor']}: {c['level']}" for c in rows]
    height = 0.8 + 0.3 * len(labels)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((_left(labels, WIDTH), 0.5 / height, 0.96 - _left(labels, WIDTH), 0.94 - 0.5 / height))
        for y, c in enumerate(rows):
            ends = [c["k_reference"] / max(1, c["n_reference"]), c["k"] / max(1, c["n"])]
            axes.plot(ends, [y, y], color=MUTED, lw=1)
            axes.plot(ends[:1], [y], "o", mfc="none", color=MUTED, ms=5)
            axes.plot(ends[1:], [y], "o", color=ORANGE, ms=5)
        _rows(axes, labels, zero=False)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("Share of runs that collapsed; hollow: the reference")

    return Plot(name="collapses", alt="Collapse share per level", size=(WIDTH, height), draw=draw)


def interactions(r: Data) -> Plot:
    """Two-way interactions of the score as a matrix."""
    labels, known = interaction_matrix(r["fits"]["score"]["effects"])
    n = len(labels)
    grid = np.full((n, n), np.nan)
    for (a, b), e in known.items():
        grid[labels.index(a), labels.index(b)] = grid[labels.index(b), labels.index(a)] = e["value"]
    top = max(1e-6, float(np.nanmax(np.abs(grid))))
    height = 1.2 + 0.42 * n

    def draw(figure: Figure) -> None:
        left = _left(labels, WIDTH)
        axes = figure.add_axes((left, 0.9 / height, 0.97 - left, 0.97 - 0.9 / height))
        axes.pcolormesh(grid, cmap="RdBu", norm=TwoSlopeNorm(0, -top, top), alpha=0.75, lw=0)
        for (a, b), e in known.items():
            sure = "bold" if e["p_adjusted"] < 0.05 else "normal"
            for i, j in ((labels.index(a), labels.index(b)), (labels.index(b), labels.index(a))):
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    text.signed(e["value"]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    fontweight=sure,
                    color=INK,
                )
        places = [i + 0.5 for i in range(n)]
        axes.set_xticks(places, labels, rotation=20, ha="right")
        axes.set_yticks(places, labels)
        axes.set_ylim(n, 0)
        axes.grid(visible=False)

    return Plot(name="interactions", alt="Matrix of two-way interactions", size=(WIDTH, height), draw=draw)


def components(r: Data) -> Plot:
    """Leave-one-out, add-one-in and Shapley value of each component."""
    single = {s["factor"]: s for s in r["single"]}
    shapley = {s["factor"]: s for s in r["shapley"]}
    labels = list(dict.fromkeys([*single, *shapley]))
    height = 1.1 + 0.5 * len(labels)

    def draw(figure: Figure) -> None:
        left = _left(labels, WIDTH)
        axes = figure.add_axes((left, 0.8 / height, 0.96 - left, 0.97 - 0.8 / height))
        for y, name in enumerate(labels):
            s = single.get(name, {})
            _bar(axes, s.get("leave_one_out"), y - 0.22, ORANGE, "s")
            _bar(axes, s.get("add_one_in"), y, GREEN, "^")
            _bar(axes, shapley.get(name), y + 0.22, BLUE)
        _rows(axes, labels)
        axes.set_xlabel("Held-out score")
        for name, color, marker in (
            ("left out costs", ORANGE, "s"),
            ("added gains", GREEN, "^"),
            ("Shapley", BLUE, "o"),
        ):
            axes.plot([], [], marker, color=color, label=name)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / (height - 1.1)), ncols=3, frameon=False, fontsize=8)

    return Plot(name="components", alt="Leave-one-out, add-one-in, Shapley values", size=(WIDTH, height), draw=draw)


def cells(r: Data) -> Plot:
    """Every cell, best first."""
    known = sorted((c for c in r["cells"] if c["score"]["value"] is not None), key=lambda c: -c["score"]["value"])
    labels = [c["arm"] for c in known]
    height = 0.7 + 0.24 * len(labels)

    def draw(figure: Figure) -> None:
        left = _left(labels, 8.4)
        axes = figure.add_axes((left, 0.5 / height, 0.97 - left, 0.98 - 0.5 / height))
        for y, c in enumerate(known):
            e = c["score"]
            if e["low"] is not None:
                axes.plot([max(0, e["low"]), min(1, e["high"])], [y, y], color=LINE, lw=3)
            axes.plot([e["value"]], [y], "o", color=BLUE, ms=5, mfc="none" if c["collapsed"]["value"] else BLUE)
        _rows(axes, labels, zero=False)
        axes.set_xlabel("Held-out score, 95 % intervals over seeds")

    return Plot(name="cells", alt="Mean score of every cell", size=(8.4, height), draw=draw)
