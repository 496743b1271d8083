"""Figures of a search: across algorithms, and of each its history, importance, slices, contour, Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report import style, text
from harness.report.figures import INK, LINE, MUTED, Plot
from harness.report.page import Drawn

Data = Mapping[str, Any]
BLUE, ORANGE = "#0072B2", "#D55E00"
MAP = "viridis"
FEW = 3  # values, of which each has a tick
HALF, WHOLE = (5.2, 3.0), (8.4, 3.2)
BOX = (0.11, 0.17, 0.86, 0.78)
EVALUATORS = ("fANOVA", "PED-ANOVA")


def overview(r: Data) -> list[Drawn]:
    """Default against tuned, expected best of k, learning-rate sensitivity."""
    colors = _colors(r)
    found = [
        Drawn(title="Default and tuned", words="test split, fresh seeds, 95 % t intervals; hollow: default",
              plot=default_tuned(r, colors)),
        Drawn(title="Score against budget", words="expected best of k trials, tuning seeds", plot=best_of(r, colors)),
    ]  # fmt: skip
    if any(len(a["sensitivity"]) > 1 for a in r["algorithms"]):
        found.append(Drawn(title="Learning rate", words="the defaults at 1/3, 1 and 3 times the rate; x: collapsed",
                           plot=sensitivity(r, colors)))  # fmt: skip
    return found


def of_algorithm(r: Data, a: Data) -> list[Drawn]:
    """The figures of one search."""
    at = r["objectives"].index("score")
    trials = [t for t in a["trials"] if t["state"] == "COMPLETE"]
    if not trials:
        return []
    slug = "".join(c if c.isalnum() else "-" for c in a["arm"].lower())
    paths = list(dict.fromkeys(p for t in trials for p in t["params"]))
    found = [
        Drawn(title="History", words="x: a constraint is violated; line: best so far", plot=history(slug, trials, at))
    ]
    if len(r["objectives"]) > 1:
        found.append(Drawn(title="Pareto front", words="score against the second objective",
                           plot=pareto(slug, trials, r["objectives"])))  # fmt: skip
    if a.get("importance"):
        found.append(Drawn(title="Importance", words="share of the score's variance; 90 % range over resamples",
                           plot=importance(slug, a["importance"])))  # fmt: skip
    found.append(Drawn(title="Slices", plot=slices(slug, trials, at, paths)))
    if len(trials) > 2:
        found.append(Drawn(title="Parallel coordinates", words="brighter: higher score",
                           plot=parallel(slug, trials, at, paths)))  # fmt: skip
    ranked = _ranked_numeric(a, trials, paths)
    if len(ranked) == 2 and len(trials) >= 6:
        found.append(Drawn(title="Contour", words="linear between trials; x: a constraint is violated",
                           plot=contour(slug, trials, at, ranked)))  # fmt: skip
    return found


def _colors(r: Data) -> dict[str, str]:
    styles = style.assign([(a["arm"], a["algorithm"], "outcome") for a in r["algorithms"]])
    return {name: s["color"] for name, s in styles.items()}


def _feasible(t: Data) -> bool:
    return all(v <= 0 for v in t["constraints"].values())


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) for v in values)


def _log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 8


def _ranked_numeric(a: Data, trials: Sequence[Data], paths: Sequence[str]) -> list[str]:
    """The two most important dimensions with more than three values; in their order where nothing is known."""
    shares = (a.get("importance") or {}).get("fANOVA", {}).get("shares", {})
    many = [p for p in paths if _numeric(v := [t["params"][p] for t in trials]) and len(set(v)) > 3]
    return sorted(many, key=lambda p: -shares.get(p, {"value": 0.0})["value"])[:2]


def default_tuned(r: Data, colors: Mapping[str, str]) -> Plot:
    """Default and tuned of every algorithm, side by side."""
    names = [a["arm"] for a in r["algorithms"]]
    height = 0.9 + 0.36 * len(names)

    def draw(figure: Figure) -> None:
        left = 0.04 + 0.08 * max(map(len, names)) / HALF[0]
        axes = figure.add_axes((left, 0.55 / height, 0.96 - left, 0.97 - 0.55 / height))
        for y, a in enumerate(r["algorithms"]):
            for row, shift in ((a["default"], -0.14), (a["tuned"], 0.14)):
                if row is None or row["test_score"]["value"] is None:
                    continue
                e, color = row["test_score"], colors[a["arm"]]
                if e["low"] is not None:
                    axes.plot([max(0, e["low"]), min(1, e["high"])], [y + shift] * 2, color=color, lw=1.3)
                axes.plot([e["value"]], [y + shift], "o", color=color, ms=6, mfc="none" if shift < 0 else color)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=LINE, lw=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("Score")

    return Plot(
        name="default-tuned", alt="Default and tuned score of every algorithm", size=(HALF[0], height), draw=draw
    )


def best_of(r: Data, colors: Mapping[str, str]) -> Plot:
    """P11: expected best of k trials."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.11, 0.17, 0.54, 0.78))
        for a in r["algorithms"]:
            axes.plot(range(1, len(a["best_of"]) + 1), a["best_of"], color=colors[a["arm"]], lw=1.6, label=a["arm"])
        axes.set_xlabel("Trials")
        axes.set_ylabel("Expected best score")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)

    return Plot(name="best-of-k", alt="Expected best score over the number of trials", size=HALF, draw=draw)


def sensitivity(r: Data, colors: Mapping[str, str]) -> Plot:
    """The defaults at other learning rates."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.11, 0.17, 0.54, 0.78))
        for a in r["algorithms"]:
            found = sorted((float(s["what"].removeprefix("lr x ")) if s["what"] != "defaults" else 1.0, s["score"],
                            bool(s["collapsed"])) for s in a["sensitivity"])  # fmt: skip
            x, y = [f[0] for f in found], [f[1] for f in found]
            axes.plot(x, y, "o-", color=colors[a["arm"]], lw=1.4, ms=4, label=a["arm"])
            bad = [f for f in found if f[2]]
            axes.plot([f[0] for f in bad], [f[1] for f in bad], "x", color=INK, ms=8)
        axes.set_xscale("log")
        axes.set_xticks([1 / 3, 1, 3], ["1/3", "1", "3"])
        axes.minorticks_off()
        axes.set_xlabel("Learning rate, times the default")
        axes.set_ylabel("Tuning score")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)

    return Plot(name="lr-sensitivity", alt="Score of the defaults at three learning rates", size=HALF, draw=draw)


def history(slug: str, trials: Sequence[Data], at: int) -> Plot:
    """Score of every trial and the best so far."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        good = [t for t in trials if _feasible(t)]
        bad = [t for t in trials if not _feasible(t)]
        axes.plot([t["number"] for t in good], [t["values"][at] for t in good], "o", color=BLUE, ms=4)
        axes.plot([t["number"] for t in bad], [t["values"][at] for t in bad], "x", color=ORANGE, ms=6)
        if good:
            best = np.maximum.accumulate([t["values"][at] for t in good])
            axes.step([t["number"] for t in good], best, where="post", color=MUTED, lw=1.2)
        axes.set_xlabel("Trial")
        axes.set_ylabel("Tuning score")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return Plot(name=f"{slug}-history", alt="Score of every trial", size=HALF, draw=draw)


def pareto(slug: str, trials: Sequence[Data], objectives: Sequence[str]) -> Plot:
    """Score against the second objective, the front marked."""
    at = objectives.index("score")
    other = next(i for i, o in enumerate(objectives) if o != "score")

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        good = [t for t in trials if _feasible(t)]
        bad = [t for t in trials if not _feasible(t)]
        pairs = [(t["values"][at], t["values"][other]) for t in good]
        front = [t for t, mine in zip(good, pairs, strict=True)
                 if not any(p != mine and p[0] >= mine[0] and p[1] <= mine[1] for p in pairs)]  # fmt: skip
        ordered = sorted(front, key=lambda t: t["values"][other])
        for kept, mark, color in ((bad, "x", ORANGE), (good, "o", MUTED), (ordered, "o-", BLUE)):
            x, y = [t["values"][other] for t in kept], [t["values"][at] for t in kept]
            axes.plot(x, y, mark, color=color, ms=5, lw=1)
        axes.set_xlabel(objectives[other].replace("_", " "))
        axes.xaxis.set_major_formatter(lambda v, _: text.number(v) if v else "0")
        axes.set_ylabel("Tuning score")

    return Plot(name=f"{slug}-pareto", alt="Pareto front", size=HALF, draw=draw)


def importance(slug: str, found: Data) -> Plot:
    """Both evaluators side by side."""
    paths = list(found[EVALUATORS[0]]["shares"] or found[EVALUATORS[1]]["shares"])
    height = 1.0 + 0.34 * max(1, len(paths))

    def draw(figure: Figure) -> None:
        left = 0.04 + 0.08 * max([len(p) for p in paths] or [1]) / HALF[0]
        axes = figure.add_axes((left, 0.5 / height, 0.96 - left, 1 - 0.8 / height))
        for name, shift, color in ((EVALUATORS[0], -0.17, BLUE), (EVALUATORS[1], 0.17, ORANGE)):
            shares, sure = found[name]["shares"], "" if found[name]["stable"] else ", not stable"
            for y, path in enumerate(paths):
                e = shares.get(path, {"value": 0.0, "low": None, "high": None})
                label = f"{name}{sure}" if y == 0 else None
                axes.barh([y + shift], [e["value"]], height=0.3, color=color, alpha=0.8, label=label)
                if e["low"] is not None:
                    axes.plot([e["low"], e["high"]], [y + shift] * 2, color=INK, lw=1)
        axes.set_yticks(range(len(paths)), paths)
        axes.set_ylim(len(paths) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1)
        axes.set_xlabel("Share")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False, fontsize=8)

    return Plot(name=f"{slug}-importance", alt="Importance of each dimension", size=(HALF[0], height), draw=draw)


def _axis(axes: Axes, values: Sequence[Any], path: str) -> list[float]:
    """Places of the values; a scale for numbers, names for the rest."""
    if not _numeric(values):
        names = sorted({str(v) for v in values})
        axes.set_xticks(range(len(names)), names)
        return [float(names.index(str(v))) for v in values]
    if len(set(values)) <= FEW:
        axes.set_xticks(sorted(set(values)), [f"{v:.3g}" for v in sorted(set(values))])
    elif _log(values):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(path, fontsize=8)
    return [float(v) for v in values]


def slices(slug: str, trials: Sequence[Data], at: int, paths: Sequence[str]) -> Plot:
    """Score over each dimension."""
    columns = min(3, len(paths))
    rows = -(-len(paths) // columns)

    def draw(figure: Figure) -> None:
        height = WHOLE[1] * rows * 0.62
        for i, path in enumerate(paths):
            column, row = i % columns, i // columns
            box = (0.07 + column * 0.93 / columns, 1 - (row + 1) / rows + 0.42 / height, 0.93 / columns - 0.04,
                   1 / rows - 0.62 / height)  # fmt: skip
            axes = figure.add_axes(box)
            x = _axis(axes, [t["params"][path] for t in trials], path)
            axes.set_xlabel(path, fontsize=8)
            for t, place in zip(trials, x, strict=True):
                mark, color = ("o", BLUE) if _feasible(t) else ("x", ORANGE)
                axes.plot([place], [t["values"][at]], mark, color=color, ms=4, alpha=0.8)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelsize=8)
            axes.minorticks_off()

    return Plot(
        name=f"{slug}-slices", alt="Score over each dimension", size=(WHOLE[0], WHOLE[1] * rows * 0.62), draw=draw
    )


def parallel(slug: str, trials: Sequence[Data], at: int, paths: Sequence[str]) -> Plot:
    """Every trial as a line through its values, coloured by score."""
    scores = [t["values"][at] for t in trials]
    low, high = min(scores), max(scores)

    def place(path: str) -> tuple[list[float], str, str]:
        values = [t["params"][path] for t in trials]
        if not _numeric(values):
            names = sorted({str(v) for v in values})
            return [names.index(str(v)) / max(1, len(names) - 1) for v in values], names[0], names[-1]
        numbers = np.log(values) if _log(values) else np.asarray(values, dtype=float)
        span = float(numbers.max() - numbers.min()) or 1.0
        return [float(v) for v in (numbers - numbers.min()) / span], f"{min(values):.3g}", f"{max(values):.3g}"

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.04, 0.2, 0.92, 0.68))
        found = [place(p) for p in paths]
        score_places = [(s - low) / ((high - low) or 1.0) for s in scores]
        columns = [*(f[0] for f in found), score_places]
        colors = matplotlib.colormaps[MAP]
        for i in sorted(range(len(trials)), key=lambda i: scores[i]):
            axes.plot(range(len(columns)), [c[i] for c in columns], color=colors(score_places[i]), lw=1.2, alpha=0.85)
        ends = [*((f[1], f[2]) for f in found), (text.score(low), text.score(high))]
        for x, (bottom, top) in enumerate(ends):
            axes.axvline(x, color=LINE, lw=1, zorder=0)
            axes.text(x, -0.04, bottom, ha="center", va="top", fontsize=7.5, color=MUTED)
            axes.text(x, 1.03, top, ha="center", va="bottom", fontsize=7.5, color=MUTED)
            name = [*(p.rpartition(".")[2] if p.startswith("recipe.") else p for p in paths), "score"][x]
            axes.text(x, -0.15, name, ha="center", va="top", fontsize=8)
        axes.set_xlim(-0.3, len(columns) - 0.7)
        axes.set_ylim(0, 1)
        axes.axis("off")

    return Plot(name=f"{slug}-parallel", alt="Parallel coordinates of the trials", size=WHOLE, draw=draw)


def contour(slug: str, trials: Sequence[Data], at: int, paths: Sequence[str]) -> Plot:
    """Score over the two most important dimensions, linear between the trials."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.15, 0.17, 0.68, 0.78))
        values = [[float(t["params"][p]) for t in trials] for p in paths]
        x, y = (np.log10(v) if _log(v) else np.asarray(v) for v in values)
        z = [t["values"][at] for t in trials]
        flat = np.ptp(x) == 0 or np.ptp(y) == 0 or np.linalg.matrix_rank(np.column_stack([x - x[0], y - y[0]])) < 2
        if not flat and max(z) > min(z):
            drawn = axes.tricontourf(x, y, z, levels=9, cmap=MAP, alpha=0.85)
            bar = figure.colorbar(drawn, cax=figure.add_axes((0.86, 0.17, 0.03, 0.78)))
            bar.ax.tick_params(labelsize=8)
            bar.outline.set_visible(False)
        for t, i, j in zip(trials, x, y, strict=True):
            axes.plot([i], [j], "o" if _feasible(t) else "x", color=INK, ms=3.5)
        for set_label, path, v in ((axes.set_xlabel, paths[0], values[0]), (axes.set_ylabel, paths[1], values[1])):
            set_label(f"log10 {path}" if _log(v) else path)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False)

    return Plot(name=f"{slug}-contour", alt="Score over the two most important dimensions", size=HALF, draw=draw)
