"""Figures as inline SVG. Text stays text; ink colours are CSS variables, so light, dark and print all work."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_hex
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from harness.report import text

INK, MUTED, LINE, BAND = "#010203", "#010204", "#010205", "#010206"  # stand-ins, replaced by CSS variables
ON_WHITE = {INK: "#1c2126", MUTED: "#667079", LINE: "#dfe3e7", BAND: "#eef1f4"}
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", BAND: "var(--band)"}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}
AXES = {
    "sampled_tokens": "Sampled tokens (discarded ones included)",
    "step": "Rollout steps",
    "trained_tokens": "Trained tokens",
    "wallclock_s": "Training time, seconds",
}
Style = Mapping[str, Mapping[str, str]]
TOKENS = FuncFormatter(lambda value, _: text.count(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A figure that can be drawn inline, as SVG or as PNG."""

    name: str
    alt: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


def svg(plot: Plot) -> str:
    """The figure as an inline element; the same input gives the same bytes."""
    with _drawn(plot) as figure:
        return _inline(_bytes(figure, "svg").decode(), plot.name, plot.alt)


def exported(plot: Plot) -> dict[str, bytes]:
    """The figure as files of their own, `svg` and `png`, in dark ink on white."""
    with _drawn(plot) as figure:
        figure.draw_without_rendering()  # makes the tick labels
        _restyle(figure)
        return {kind: _bytes(figure, kind, facecolor="white", dpi=160) for kind in ("svg", "png")}


@contextmanager
def _drawn(plot: Plot) -> Iterator[Figure]:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.name}):
        figure = Figure(figsize=plot.size, layout="none")
        plot.draw(figure)
        yield figure


def _bytes(figure: Figure, kind: str, **page: Any) -> bytes:
    buffer = io.BytesIO()
    none = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    figure.savefig(buffer, format=kind, metadata=dict.fromkeys(none), **page)
    return buffer.getvalue()


def _restyle(figure: Figure) -> None:
    """Real colours instead of the stand-ins for CSS variables."""
    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markeredgecolor", "markerfacecolor"):
            if not (hasattr(artist, f"get_{part}") and hasattr(artist, f"set_{part}")):
                continue
            value = getattr(artist, f"get_{part}")()
            if isinstance(value, str | tuple) and is_color_like(value) and to_hex(value) in ON_WHITE:
                getattr(artist, f"set_{part}")(ON_WHITE[to_hex(value)])


def _inline(source: str, name: str, alt: str) -> str:
    body = source[source.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
    slug = "f" + hashlib.sha256(name.encode()).hexdigest()[:8]  # ids must be unique in the page
    body = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{slug}-", body)
    body = re.sub(r"<style.*?</style>\s*", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    body = re.sub(r"(?<=[ML] )(-?[\d.]+) (-?[\d.]+)", _short_point, body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, variable)
    box = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg {box.group(0) if box else ""} role="img" aria-label="{escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + re.sub(r"\s*\n\s*", "\n", body[body.index(">") + 1 :]).strip()


def _short_point(match: re.Match[str]) -> str:
    return f"{float(match[1]):.1f} {float(match[2]):.1f}"


def learning(report: Mapping[str, Any], axis: str) -> Plot:
    """P1: held-out score of all arms: thin seeds, thick mean, names at the right; tokens on a logarithmic axis."""
    curves, styles = report["curves"], _styles(report)
    label = AXES[axis]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.09, 0.14, 0.66, 0.82))
        ends = []
        for arm, data in curves["arms"].items():
            thin_lines(axes, [(line[axis], line["score"]) for line in data["runs"]], styles[arm]["color"], 0.7, 0.28)
            mean = data["mean"][axis]
            if mean["x"]:
                _mean(axes, mean, styles[arm])
                ends.append((mean["mean"][-1], arm, styles[arm]["color"], mean["x"][-1]))
        _collapse_crosses(axes, report, axis)
        _score_axis(axes, curves)
        axes.set_xlabel(label)
        if axis.endswith("tokens"):
            _log_tokens(axes, _first(curves, axis), _end(curves, axis))
        axes.set_xlim(0, _end(curves, axis))
        if axis == "sampled_tokens" and curves["budget"]:
            axes.axvline(curves["budget"], color=MUTED, lw=0.8, ls=(0, (2, 2)), clip_on=False)
        axes.set_ylabel(f"Score, {curves['split']} split")
        _name_ends(axes, ends)

    return Plot(
        name=f"learning-{axis}",
        alt=f"Held-out score over {label.lower()}, one line per arm",
        size=(5.7, 3.5),
        draw=draw,
    )


def _collapse_crosses(axes: Axes, report: Mapping[str, Any], axis: str) -> None:
    """A cross on the line of every collapsed run, where its first collapse began."""
    lost = {r["id"]: r["collapse_tokens"] for r in report["runs"] if r["collapse_tokens"] is not None}
    for arm, data in report["curves"]["arms"].items():
        color = _styles(report)[arm]["color"]
        for line in (ln for ln in data["runs"] if ln["run"] in lost):
            at = [np.interp(lost[line["run"]], line["sampled_tokens"], line[k]) for k in (axis, "score")]
            axes.plot(*at, marker="X", ms=7, color=color, mec=INK, mew=0.6, ls="none")


def _log_tokens(axes: Axes, first: float, end: float) -> None:
    """Logarithmic from the first evaluation after the start, which stands at 0 on the left."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)
    ticks = [first * 2**i for i in range(int(np.log2(max(1.0, end / first))) + 1)]
    axes.set_xticks([0, *(ticks[:: max(1, -(-len(ticks) // 6))])])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(TOKENS)


def _first(curves: Mapping[str, Any], axis: str) -> float:
    """Where the first evaluation after the start stands."""
    found = [x for d in curves["arms"].values() for line in d["runs"] for x in line[axis] if x > 0]
    return float(min(found, default=1.0))


def _end(curves: Mapping[str, Any], axis: str) -> float:
    """Right end of the axis: the longest run, and the budget where there is one."""
    longest = max((line[axis][-1] for d in curves["arms"].values() for line in d["runs"]), default=1.0)
    budget = curves["budget"] if axis == "sampled_tokens" else None
    return float(max(longest, budget or 0.0, 1.0))


def _styles(report: Mapping[str, Any]) -> Style:
    return {a["name"]: a["style"] for a in report["arms"]}


def _mean(axes: Axes, mean: Mapping[str, Any], style: Mapping[str, str], lw: float = 2.0) -> None:
    every = max(1, len(mean["x"]) // 8)
    axes.plot(
        mean["x"], mean["mean"], color=style["color"], lw=lw, ls=style["dash"], marker=style["marker"], ms=4.5,
        markevery=every, mew=0.8 if style["marker"] not in "x+1" else 1.4,
    )  # fmt: skip


def _score_axis(axes: Axes, curves: Mapping[str, Any]) -> None:
    top = max((s for d in curves["arms"].values() for line in d["runs"] for s in line["score"]), default=1.0)
    axes.set_ylim(0, min(1.02, max(0.1, 1.06 * top)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str, float]], gap: float = 0.058) -> None:
    """Names beside the end points (value, name, colour, x), moved apart where they would overlap."""
    if not ends:
        return
    across = axes.transData + axes.transAxes.inverted()
    low, high = axes.get_ylim()
    ordered = sorted(ends)
    places = _spread([(v - low) / (high - low) for v, *_ in ordered], gap)
    for (value, name, color, end), place in zip(ordered, places, strict=True):
        x = across.transform((end, low))[0]
        start = (value - low) / (high - low)
        if x < 0.97:
            axes.plot([x + 0.015, 1.0], [start, start], transform=axes.transAxes, color=color, lw=0.7, ls=(0, (1, 3)))
        axes.plot(
            [1.0, 1.02, 1.04], [start, place, place], transform=axes.transAxes, color=color, lw=0.7, clip_on=False
        )
        axes.text(1.05, place, _short(name, 18), transform=axes.transAxes, color=INK, va="center", fontsize=8.5)


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted positions moved the least so that neighbours are `gap` apart."""
    blocks: list[tuple[float, int]] = []  # centre, members
    for place in places:
        blocks.append((place, 1))
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    found = [centre + gap * (i - (size - 1) / 2) for centre, size in blocks for i in range(size)]
    shift = min(0.0, 1.0 - found[-1]) + max(0.0, -found[0])
    return [f + shift for f in found]


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\u2026"


def arm_curves(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """One small figure per arm: its seeds, mean and 95 % band over the other arms' means in grey."""
    curves, styles = report["curves"], _styles(report)
    top = [a["name"] for a in report["arms"] if curves["arms"].get(a["name"], {}).get("runs")]
    rows = {a["name"]: a for a in report["arms"]}
    words = {arm: _band_words(rows[arm], curves["arms"][arm]["mean"]["step"]["n"]) for arm in top}
    return [
        {"arm": arm, "svg": svg(_arm_curve(curves, styles, arm, band=words[arm].startswith("95"))), "words": words[arm]}
        for arm in top
    ]


def _band_words(arm: Mapping[str, Any], n: int) -> str:
    if n < 3:
        return f"no band, n = {n}"
    return "95 % band" if arm["score"]["low"] is not None or not arm["n"] else "no band, a run collapsed"


def _arm_curve(curves: Mapping[str, Any], styles: Style, arm: str, *, band: bool) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.14, 0.2, 0.83, 0.76))
        for other, data in curves["arms"].items():
            if other != arm:
                axes.plot(
                    data["mean"]["sampled_tokens"]["x"], data["mean"]["sampled_tokens"]["mean"], color=LINE, lw=1.1
                )
        mean, color = curves["arms"][arm]["mean"]["sampled_tokens"], styles[arm]["color"]
        if band:
            low, high = (np.array(mean[k], dtype=float) for k in ("low", "high"))
            axes.fill_between(mean["x"], np.clip(low, 0, 1), np.clip(high, 0, 1), color=color, alpha=0.18, lw=0)
        lines = [(line["sampled_tokens"], line["score"]) for line in curves["arms"][arm]["runs"]]
        thin_lines(axes, lines, color, 0.8, 0.55)
        _mean(axes, mean, styles[arm], lw=1.8)
        _score_axis(axes, curves)
        axes.set_xlim(0, 1.02 * _end(curves, "sampled_tokens"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(TOKENS)
        axes.set_xlabel("Sampled tokens")

    return Plot(name=f"arm-{arm}", alt=f"Held-out score of {arm} with seeds and 95 % band", size=(3.0, 2.1), draw=draw)


def forest(report: Mapping[str, Any]) -> Plot | None:
    """Differences from the reference with intervals; the equivalence band is shaded."""
    rows = [c for c in report["comparisons"] if c["value"] is not None]
    if not rows:
        return None
    styles, delta = _styles(report), report["study"]["delta"]
    height = 0.75 + 0.34 * len(rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.24, 0.5 / height, 0.52, 1 - 0.6 / height))
        axes.axvspan(-delta, delta, color=BAND, lw=0)
        axes.axvline(0, color=MUTED, lw=0.8)
        for y, c in enumerate(reversed(rows)):
            color = styles[c["a"]]["color"]
            if c["low"] is not None:
                axes.plot([c["low"], c["high"]], [y, y], color=color, lw=2.0)
            axes.plot([c["value"]], [y], marker=styles[c["a"]]["marker"], color=color, ms=6.5, mew=1.4, ls="none")
            axes.text(1.03, y, text.label_words(c), transform=axes.get_yaxis_transform(), va="center",
                      fontsize=8.5, color=INK)  # fmt: skip
        axes.set_yticks(range(len(rows)), [_row_name(c, report["study"]["reference"]) for c in reversed(rows)])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=8.5)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"Difference in score from {_short(report['study']['reference'], 24)} (95 % interval)")
        _zero_inside(axes, delta)

    return Plot(
        name="forest",
        alt="Differences in score from the reference arm, with 95 % intervals",
        size=(7.2, height),
        draw=draw,
    )


def _row_name(c: Mapping[str, Any], reference: str) -> str:
    """The arm; a second line names a reference that is not the study's."""
    return _short(c["a"], 24) if c["b"] == reference else f"{_short(c['a'], 24)}\nfrom {_short(c['b'], 20)}"


def _zero_inside(axes: Axes, delta: float) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -2 * delta), max(high, 2 * delta))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: "0" if abs(v) < 1e-9 else f"{v:+.2g}".replace("-", text.MINUS))
    )
    axes.xaxis.set_major_locator(MaxNLocator(7))


def panel_figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One small figure per stability metric."""
    onsets = {r["id"]: [e["onset_step"] for e in r["events"]] for r in report["runs"]}
    styles = _styles(report)
    return [
        {
            **p,
            "zero": bool(p["arms"]) and not any(_values(p)),
            "svg": svg(_panel(p, styles, onsets)) if any(_values(p)) else None,
        }
        for p in report["panels"]
    ]


def _values(panel: Mapping[str, Any]) -> list[float]:
    return [v for lines in panel["arms"].values() for line in lines for v in line["y"] if v is not None]


def _panel(panel: Mapping[str, Any], styles: Style, onsets: Mapping[str, Sequence[int]]) -> Plot:
    everything = _values(panel)
    log = panel["log"] and any(v > 0 for v in everything)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.15, 0.2, 0.82, 0.75))
        for arm, lines in panel["arms"].items():
            drawn = [(line["x"], _shown(line["y"], log)) for line in lines]
            thin_lines(axes, drawn, styles[arm]["color"], 0.6, 0.3)
            for line, (x, y) in zip(lines, drawn, strict=True):
                for onset in onsets.get(line["run"], ()):
                    axes.plot(onset, np.interp(onset, x, y), "o", mfc="none", mec=INK, ms=7, mew=1.0)
        for arm, mean in panel["means"].items():
            axes.plot(mean["x"], _shown(mean["y"], log), color=styles[arm]["color"], lw=1.5, ls=styles[arm]["dash"])
        axes.set_xlabel("Rollout steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _panel_scale(axes, panel, everything, log)
        low, high = axes.get_ylim()
        if panel["limit"] is not None and low < panel["limit"] < high:
            axes.axhline(panel["limit"], color=MUTED, lw=0.8, ls=(0, (2, 2)))

    return Plot(name=f"panel-{panel['key']}", alt=f"{panel['title']} over rollout steps", size=(3.4, 2.2), draw=draw)


def _shown(values: Sequence[float | None], log: bool) -> np.ndarray:
    return np.array([np.nan if v is None or (log and v <= 0) else v for v in values], dtype=float)


def thin_lines(
    axes: Axes, lines: Sequence[tuple[Sequence[float], Any]], color: str, width: float, alpha: float
) -> None:
    """All runs of an arm as one path with gaps, so that a thousand runs are drawn as fast as ten."""
    x = [v for xs, _ in lines for v in (*xs, np.nan)]
    y = [v for _, ys in lines for v in (*ys, np.nan)]
    axes.plot(x, y, color=color, lw=width, alpha=alpha)


def _panel_scale(axes: Axes, panel: Mapping[str, Any], everything: Sequence[float], log: bool) -> None:
    if not log:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: text.number(v) if v else "0"))
        if everything and min(everything) >= 0 and not panel["key"].startswith("ratio/"):
            axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    positive = [v for v in everything if v > 0]
    low, high = min(positive), max(positive)
    bottom, top = np.floor(np.log10(low) + 1e-9), np.ceil(np.log10(high) - 1e-9)
    axes.set_ylim(10**bottom, 10 ** max(top, bottom + 1))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:g}" if 1e-4 <= v < 1e5 else f"1e{np.log10(v):.0f}".replace("-", text.MINUS))
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def marker(style: Mapping[str, str]) -> str:
    """A small swatch: the arm's line and marker; no ids, since it stands in many places."""
    shape = MarkerStyle(style["marker"])
    outline = shape.get_path().transformed(shape.get_transform())
    parts = [
        f'<line x1="0" x2="26" y1="6" y2="6" style="stroke:{style["color"]};stroke-width:2;{DASHES[style["dash"]]}"/>'
    ]
    for polygon in outline.to_polygons(closed_only=False):
        points = " ".join(f"{13 + 6.5 * x:.1f},{6 - 6.5 * y:.1f}" for x, y in polygon)
        fill = style["color"] if shape.is_filled() else "none"
        parts.append(f'<polyline points="{points}" style="fill:{fill};stroke:{style["color"]};stroke-width:1.4"/>')
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{"".join(parts)}</svg>'


DASHES = {"solid": "", "dashed": "stroke-dasharray:4 3;"}


STRIP = 132.0  # width of a strip


def strip(
    seeds: Sequence[Mapping[str, Any]], estimate: Mapping[str, Any], color: str, span: tuple[float, float]
) -> str:
    """Every seed's score as a dot on a common scale, over the arm's interval; collapsed runs are hollow."""
    parts = [f'<line x1="4" x2="{STRIP - 4:g}" y1="9" y2="9" style="stroke:var(--line)"/>']
    if estimate["low"] is not None:
        x0, x1 = _place(estimate["low"], span), _place(estimate["high"], span)
        box = f'x="{x0:.1f}" y="5.5" width="{x1 - x0:.1f}" height="7" rx="1.5"'
        parts.append(f'<rect {box} style="fill:{color};opacity:.22"/>')
    for seed in seeds:
        look = f"fill:none;stroke:{color}" if seed["status"] == "collapsed" else f"fill:{color};opacity:.85"
        parts.append(f'<circle cx="{_place(seed["score"], span):.1f}" cy="9" r="2.7" style="{look}"/>')
    if estimate["value"] is not None:
        x = _place(estimate["value"], span)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="16" style="stroke:var(--ink);stroke-width:1.4"/>')
    head = f'<svg class="strip" viewBox="0 0 {STRIP:g} 18" role="img" aria-label="scores of the seeds">'
    return f"{head}{''.join(parts)}</svg>"


def _place(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return 4 + (STRIP - 8) * (min(max(value, low), high) - low) / (high - low)
