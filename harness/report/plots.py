"""Figures beside the learning curves: performance profile, time to collapse, and what a score costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report import text
from harness.report.figures import MUTED, TOKENS, Plot

SIZE, BOX = (4.4, 2.9), (0.13, 0.17, 0.84, 0.78)
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
    for key, title, label, form in (
        ("entropy_end", "Entropy and score", "Entropy at the end, nats/token", text.number),
        ("wallclock_s", "Cost and score", "Training time of a run", text.seconds),
        ("length", "Length and score", "Response length, tokens", text.number),
    ):
        if any(r["counted"] and r[key] is not None for r in report["runs"]):
            found.append({"title": title, "words": "a point per run; large: mean of the arm",
                          "plot": scatter(report, key, label, form)})  # fmt: skip
    return found


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
    """P4: Kaplan-Meier curve of every arm over sampled tokens, with log-log Greenwood bands."""
    ends = {a["name"]: max((r["sampled_tokens"] for r in report["runs"] if r["arm"] == a["name"]), default=0)
            for a in report["arms"]}  # fmt: skip
    end = max(*ends.values(), 1)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        for a in report["arms"]:
            km, style = a["survival"], a["style"]
            if not km["n"]:
                continue
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
        axes.set_xlabel("Sampled tokens")

    return Plot(name="survival", alt="Share of runs not yet collapsed over sampled tokens", size=SIZE, draw=draw)


def _shares(axes: Axes, label: str) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def scatter(report: Report, key: str, label: str, form: Callable[[float | None], str]) -> Plot:
    """Final score of every run over one of its properties."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(BOX)
        tops = [0.1]
        for a in report["arms"]:
            runs = [r for r in report["runs"] if r["arm"] == a["name"] and r["counted"] and r[key] is not None]
            if not runs:
                continue
            color, x, y = a["style"]["color"], [r[key] for r in runs], [r["score"] for r in runs]
            axes.plot(x, y, "o", ms=3.2, color=color, alpha=0.55, mew=0)
            axes.plot([_mean(x)], [_mean(y)], marker=a["style"]["marker"], ms=8, color=color, mew=1.2, ls="none")
            tops += y
        axes.set_ylim(0, min(1.02, 1.08 * max(tops)))
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda v, _: form(v) if v else "0")
        axes.set_ylabel("Final score, test split")
        axes.set_xlabel(label)
        axes.grid(visible=True, axis="x", color=axes.yaxis.get_gridlines()[0].get_color(), lw=0.5)
        axes.tick_params(colors=MUTED)

    return Plot(name=f"scatter-{key}", alt=f"Final score over {label.lower()}, a point per run", size=SIZE, draw=draw)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
