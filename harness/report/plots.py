"""Figures beside the learning curves: performance profile, time to collapse, and what a score costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.report import text
from harness.report.figures import MUTED, TOKENS, Plot, thin_lines
from harness.report.lengths import NOISES

AT_RISK = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the budget
SHIFT = 0.1  # room for the names beside the numbers at risk
SIZE, BOX = (4.4, 2.9), (0.13, 0.17, 0.84, 0.78)
NARROW = (0.13, 0.17, 0.8, 0.78)  # room for half of the last label
Report = Mapping[str, Any]


def evidence_plots(report: Report) -> list[dict[str, Any]]:
    """Title, small print and plot of every figure that has data; P3, P4, P6, P7, P8 of the method."""
    found: list[dict[str, Any]] = []
    if report["profiles"]["arms"]:
        words = "share of runs above a score, collapsed runs included; band from twenty runs on"
        found.append({"title": "Performance profile", "words": words, "plot": profile(report)})
    if any(a["survival"]["n"] for a in report["arms"]):
        words = "Kaplan-Meier; runs that held are censored at their budget"
        found.append({"title": "Runs not yet collapsed", "words": words, "plot": survival(report)})
    if report["trajectories"]:
        found.append({"title": "Entropy and score", "words": _fit_words(report), "plot": entropy_paths(report)})
    for key, title, words, label, form in (
        ("wallclock_s", "Cost and score", "dotted: no arm of the bracket is faster and better; larger: more memory",
         "Training time of a run", text.seconds),
        ("length", "Length and score", "dotted: the same score per token", "Response length, tokens", text.number),
    ):  # fmt: skip
        if any(r["counted"] and r[key] is not None for r in report["runs"]):
            found.append({"title": title, "words": f"a point per run; large: mean of the arm; {words}",
                          "plot": scatter(report, key, label, form)})  # fmt: skip
    for r in report["ranks"]:
        found.append({"title": "Rank of the mean score", "words": f"joint bootstrap over {r['n']} seed pairs",
                      "plot": ranks(report, r)})  # fmt: skip
    found += [{"title": f"Collapses of {name}", "words": "collapsed / finished runs by learning rate and updates",
               "plot": region(name, cells)} for name, cells in regions(report).items()]  # fmt: skip
    if report["tuning"] and any(len(a["best_of"]) > 1 for a in report["tuning"]["arms"]):
        found.append({"title": "Score against trials", "words": "expected best of k trials, tuning seeds",
                      "plot": best_of(report)})  # fmt: skip
    return found


def length_plots(report: Report) -> list[dict[str, Any]]:
    """P9: noise of the ratio over response length, a figure per kind of noise."""
    found = report["ratio_by_length"]
    ends = [b["upper"] for data in found.values() for b in data["bins"]]
    words = "geometric mean over runs, 95 % intervals; both axes log"
    return [{"title": title, "words": words, "plot": _length_plot(report, name, title)}
            for name, title in NOISES.items() if len(set(ends)) > 1]  # fmt: skip


def _length_plot(report: Report, name: str, title: str) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.17, 0.17, 0.8, 0.78))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        everything = [b[name]["value"] for data in report["ratio_by_length"].values() for b in data["bins"]]
        known = [v for v in everything if v]
        axes.set_ylim(min(known, default=1.0) / 2, 2 * max(known, default=1.0))  # wider intervals are cut
        for a in report["arms"]:
            bins = [b for b in report["ratio_by_length"].get(a["name"], {"bins": []})["bins"] if b[name]["value"]]
            x, y = [b["middle"] for b in bins], [b[name]["value"] for b in bins]
            for b in bins:
                if b[name]["low"] is not None:
                    axes.plot([b["middle"]] * 2, [b[name]["low"], b[name]["high"]], color=a["style"]["color"], lw=0.8,
                              alpha=0.5)  # fmt: skip
            axes.plot(x, y, color=a["style"]["color"], marker=a["style"]["marker"], ls=a["style"]["dash"], lw=1.4, ms=4)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:.3g}")
        axes.yaxis.set_major_formatter(lambda v, _: text.number(v))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Response length, tokens")
        axes.set_ylabel(title)

    return Plot(name=f"length-{name.replace('_', '-')}", alt=f"{title} over response length, a line per arm", size=SIZE,
                draw=draw)  # fmt: skip


def ranks(report: Report, found: Mapping[str, Any]) -> Plot:
    """P14: probability of every rank of the mean score, a bar per arm."""
    rows = list(reversed(found["arms"]))
    shades = [1.0 - 0.8 * i / max(1, len(rows) - 1) for i in range(len(rows))]
    colors = {a["name"]: a["style"]["color"] for a in report["arms"]}

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.3, 0.17, 0.67, 0.78))
        for y, row in enumerate(rows):
            left = 0.0
            for share, shade in zip(row["probability"], shades, strict=True):
                axes.barh(y, share, left=left, height=0.62, color=colors[row["arm"]], alpha=shade, lw=0)
                left += share
        axes.set_yticks(range(len(rows)), [_name(r["arm"]) for r in rows])
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        axes.set_xlabel("Probability of rank 1 (dark), 2, ... (light)")

    name = f"ranks-{found['bracket']}-{found['roster']}"
    return Plot(name=name, alt="Bootstrap rank distribution, a bar per arm", size=SIZE, draw=draw)


def _name(arm: str) -> str:
    return arm if len(arm) <= 16 else arm[:15] + "\u2026"


Cells = dict[tuple[float, int], tuple[int, int]]  # (learning rate, updates per rollout batch) -> collapsed, finished


def regions(report: Report) -> dict[str, Cells]:
    """Algorithm -> cells, where a study has several learning rates or numbers of updates of it."""
    algorithms = {a["name"]: a["algorithm"] for a in report["arms"]}
    found: dict[str, Cells] = {}
    for r in report["runs"]:
        if r["status"] in ("completed", "collapsed", "no_learning") and r["updates_per_batch"] and r["lr"]:
            cells = found.setdefault(algorithms[r["arm"]], {})
            k, n = cells.get((r["lr"], r["updates_per_batch"]), (0, 0))
            cells[r["lr"], r["updates_per_batch"]] = (k + (r["status"] == "collapsed"), n + 1)
    return {name: cells for name, cells in found.items() if len(cells) > 2}


def region(name: str, cells: Cells) -> Plot:
    """P13: share of collapsed runs over learning rate and updates per rollout batch, with n in every cell."""
    rates, updates = (sorted({key[i] for key in cells}) for i in (0, 1))

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        for (lr, mu), (k, n) in cells.items():
            x, y = rates.index(lr), updates.index(mu)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color="#D55E00", alpha=0.85 * k / n, lw=0))
            axes.text(x, y, f"{k}/{n}", ha="center", va="center", fontsize=9)
        axes.set_xlim(-0.5, len(rates) - 0.5)
        axes.set_ylim(-0.5, len(updates) - 0.5)
        axes.set_xticks(range(len(rates)), [f"{lr:.3g}" for lr in rates])
        axes.set_yticks(range(len(updates)), [str(mu) for mu in updates])
        axes.grid(visible=False)
        axes.set_xlabel("Learning rate")
        axes.set_ylabel("Updates per rollout batch")

    alt = f"Collapsed runs of {name} by learning rate and updates per rollout batch"
    return Plot(name=f"region-{name}", alt=alt, size=SIZE, draw=draw)


def best_of(report: Report) -> Plot:
    """P11: what k trials of the search are expected to find."""
    colors = {a["name"]: a["style"]["color"] for a in report["arms"]}

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.17, 0.62, 0.78))
        for a in report["tuning"]["arms"]:
            best = a["best_of"]
            axes.plot(range(1, len(best) + 1), best, color=colors.get(a["arm"], MUTED), lw=1.6)
            if best:
                axes.text(1.03 * len(best), best[-1], _name(a["arm"]), fontsize=8.5, va="center")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("Trials")
        axes.set_ylabel("Score, validation split")

    return Plot(name="best-of", alt="Expected best of k trials, a line per algorithm", size=SIZE, draw=draw)


def profile(report: Report) -> Plot:
    """P3: share of runs with a score above tau."""
    levels, arms = report["profiles"]["levels"], report["profiles"]["arms"]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        for a in report["arms"]:
            data = arms.get(a["name"])
            if data is None:
                continue
            color = a["style"]["color"]
            axes.step(levels, data["value"], where="post", color=color, lw=1.4, ls=a["style"]["dash"])
            if data["low"] is not None:
                axes.fill_between(levels, data["low"], data["high"], step="post", color=color, alpha=0.15, lw=0)
        _shares(axes, "Share of runs above it")
        axes.set_xlim(0, 1)
        axes.set_xlabel("Score")

    return Plot(name="profile", alt="Performance profile, one line per arm", size=SIZE, draw=draw)


def survival(report: Report) -> Plot:
    """P4: Kaplan-Meier curve of every arm over sampled tokens, with log-log Greenwood bands; numbers at risk below."""
    ends = {a["name"]: max((r["sampled_tokens"] for r in report["runs"] if r["arm"] == a["name"]), default=0)
            for a in report["arms"]}  # fmt: skip
    end = max(*ends.values(), 1)
    last = min(end, report["curves"]["budget"] or end)
    arms = [a for a in report["arms"] if a["survival"]["n"]]
    below = 0.13 * (len(arms) + 1)  # inches for the numbers at risk
    height = SIZE[1] + below

    def draw(figure: Figure) -> None:
        left, bottom, width, tall = BOX
        up, tall = (bottom * SIZE[1] + below) / height, tall * SIZE[1] / height
        axes = figure.add_axes((left + SHIFT, up, width - SHIFT, tall))
        for a in arms:
            km, style = a["survival"], a["style"]
            x = [0, *km["time"], max(ends[a["name"]], *km["time"], 1)]
            y = [1.0, *km["survival"]]
            axes.step(x, [*y, y[-1]], where="post", color=style["color"], lw=1.6, ls=style["dash"])
            if km["time"]:
                low = [1.0, *(v if v is not None else 0.0 for v in km["low"])]
                high = [1.0, *(v if v is not None else s for v, s in zip(km["high"], km["survival"], strict=True))]
                axes.fill_between(x, [*low, low[-1]], [*high, high[-1]], step="post", color=style["color"],
                                  alpha=0.13, lw=0)  # fmt: skip
        _shares(axes, "Share not collapsed")
        axes.set_xlim(0, end)
        axes.xaxis.set_major_formatter(TOKENS)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("Sampled tokens", labelpad=1)
        figure.text(0.01, (below + 0.01) / height, "at risk", fontsize=6.5, color=MUTED, va="top")
        for row, a in enumerate(arms):
            at = (below - 0.13 * (row + 1)) / height
            figure.text(0.01, at, _name(a["name"]), fontsize=6.5, color=a["style"]["color"], va="top")
            for share in AT_RISK:
                place = left + SHIFT + (width - SHIFT) * share * last / end
                count, align = at_risk(report, a["name"], share * last), "center" if share < 1 else "right"
                figure.text(place, at, str(count), fontsize=6.5, color=MUTED, va="top", ha=align)

    alt = "Share of runs not yet collapsed over sampled tokens, with the numbers at risk"
    return Plot(name="survival", alt=alt, size=(SIZE[0], height), draw=draw)


def at_risk(report: Report, arm: str, tokens: float) -> int:
    """Finished runs of an arm that had neither collapsed nor ended before so many sampled tokens."""
    runs = [r for r in report["runs"] if r["arm"] == arm and r["counted"]]
    lasted = [r["sampled_tokens"] if r["collapse_tokens"] is None else r["collapse_tokens"] for r in runs]
    return sum(t >= tokens for t in lasted)


def _shares(axes: Axes, label: str) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _fit_words(report: Report) -> str:
    fits = [f for f in report["trajectories"].values() if f["r2"]["value"] is not None]
    words = "a line per run, from its start to the marker"
    if not fits:
        return words
    low, high = (end(f["r2"]["value"] for f in fits) for end in (min, max))
    return f"{words}; R\u00b2 of R = b \u2212 a e^H: {text.number(low)} to {text.number(high)} (mean of an arm)"


def entropy_paths(report: Report) -> Plot:
    """P6: held-out score over entropy, a path per run."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(NARROW)
        for a in (a for a in report["arms"] if a["name"] in report["trajectories"]):
            runs = report["trajectories"][a["name"]]["runs"]
            thin_lines(axes, [(r["entropy"], r["score"]) for r in runs], a["style"]["color"], 0.8, 0.5)
            ends = [(r["entropy"][-1], r["score"][-1]) for r in runs]
            axes.plot(
                *zip(*ends, strict=True), marker=a["style"]["marker"], ms=4.5, color=a["style"]["color"], ls="none"
            )
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("Entropy, nats/token")
        axes.set_ylabel(f"Score, {report['curves']['split']} split")

    return Plot(name="entropy-score", alt="Held-out score over entropy, a path per run", size=SIZE, draw=draw)


def scatter(report: Report, key: str, label: str, form: Callable[[float | None], str]) -> Plot:
    """P7, P8: final score of every run over its cost or its length."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(NARROW)
        tops, means = [0.1], dict[str, tuple[float, float]]()
        most = max((a["memory_mib"]["value"] or 0.0 for a in report["arms"]), default=0.0)
        for a in report["arms"]:
            runs = [r for r in report["runs"] if r["arm"] == a["name"] and r["counted"] and r[key] is not None]
            if not runs:
                continue
            color, x, y = a["style"]["color"], [r[key] for r in runs], [r["score"] for r in runs]
            axes.plot(x, y, "o", ms=3.2, color=color, alpha=0.55, mew=0)
            size = 5 + 6 * (a["memory_mib"]["value"] or most) / most if key == "wallclock_s" and most else 8
            axes.plot([_mean(x)], [_mean(y)], marker=a["style"]["marker"], ms=size, color=color, mew=1.2, ls="none")
            tops += y
            means[a["name"]] = (_mean(x), _mean(y))
        axes.set_ylim(0, min(1.02, 1.08 * max(tops)))
        axes.set_xlim(0, 1.06 * axes.get_xlim()[1])
        groups = [[means[n] for n in g["arms"] if n in means] for g in report["groups"] if g["ranked"]]
        rays = _rays([*means.values()], axes.get_xlim()[1])
        lines = [front(g) for g in groups if g] if key == "wallclock_s" else rays
        for line in lines:
            axes.plot(*zip(*line, strict=True), color=MUTED, lw=0.8, ls=(0, (1, 2)), zorder=1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda v, _: form(v) if v else "0")
        axes.set_ylabel("Final score, test split")
        axes.set_xlabel(label)
        axes.grid(visible=True, axis="x", color=axes.yaxis.get_gridlines()[0].get_color(), lw=0.5)
        axes.tick_params(colors=MUTED)

    return Plot(name=f"scatter-{key}", alt=f"Final score over {label.lower()}, a point per run", size=SIZE, draw=draw)


Points = Sequence[tuple[float, float]]


def front(points: Points) -> list[tuple[float, float]]:
    """Points that no other one beats in cost (x, less is better) and score (y), from the cheapest on."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _rays(points: Points, end: float) -> list[list[tuple[float, float]]]:
    """Lines of equal score per token: through the best, the middle and the worst arm."""
    slopes = sorted(y / x for x, y in points if x)
    chosen = dict.fromkeys([slopes[0], slopes[len(slopes) // 2], slopes[-1]]) if slopes else {}
    return [[(0.0, 0.0), (end, slope * end)] for slope in chosen]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
