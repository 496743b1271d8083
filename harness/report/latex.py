"""report.json -> table.tex: the verdict as a booktabs table, in points of a hundred."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MARKS = {
    "A>B": r"$>$", "B>A": r"$<$", "equivalent": r"$\approx$", "inconclusive": "?", "inconclusive-underpowered": "?",
    "measurement-limited": "?",
}  # fmt: skip
SIGNS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
         "\u2212": "-"}  # fmt: skip


def escape(words: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub("[" + re.escape("".join(SIGNS)) + "]", lambda m: SIGNS[m[0]], words)


def points(e: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`$41.2_{\\pm1.3}$` in points; without the index where there is no interval."""
    if e is None or e["value"] is None:
        return "--"
    value = f"{100 * e['value']:+.1f}" if signed else f"{100 * e['value']:.1f}"
    if e["low"] is None:
        return f"${value}$"
    return f"${value}_{{\\pm{50 * (e['high'] - e['low']):.1f}}}$"


def render(report: Mapping[str, Any]) -> str:
    """The whole file; needs \\usepackage{booktabs}."""
    arms = {a["name"]: a for a in report["arms"]}
    pairs = {c["a"]: c for c in report["comparisons"]}
    body: list[str] = []
    for g in report["groups"]:
        body += [r"\midrule", rf"\multicolumn{{6}}{{l}}{{\emph{{{escape(g['title'])}}}}} \\"]
        for name in g["arms"]:
            a, c = arms[name], pairs.get(name)
            shown = rf"\textbf{{{escape(name)}}}" if name in g["best_set"] else escape(name)
            weak = r"$^{\dagger}$" if c and c["label"] == "inconclusive-underpowered" else ""
            cells = [
                shown, points(a["score"]), points(c, signed=True) if c else "--",
                (MARKS[c["label"]] + weak) if c else "", f"{a['collapse']['k']}/{a['collapse']['n']}", str(a["n"]),
            ]  # fmt: skip
            body.append(" & ".join(cells) + r" \\")
    return "\n".join([
        "% made by `harness report`; needs \\usepackage{booktabs}",
        r"\begin{table}", r"\centering", r"\begin{tabular}{lrrlrr}", r"\toprule",
        r"Arm & Score & $\Delta$ reference & & Collapsed & $n$ \\", *body, r"\bottomrule", r"\end{tabular}",
        rf"\caption{{{_caption(report)}}}", r"\end{table}", "",
    ])  # fmt: skip


def _caption(report: Mapping[str, Any]) -> str:
    study = report["study"]
    seeds = sorted({a["n"] for a in report["arms"] if a["n"]})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}" if seeds else "0"
    words = (
        f"{study['task']}, {study['model']}, {study['budget_words']}: held-out score in points, mean over {n} seeds. "
        f"Index: half the 95 % Student-t interval. Reference: {study['reference']}; labels corrected for "
        f"{len(report['comparisons'])} comparisons. "
    )
    daggers = r"$^{\dagger}$\,underpowered. Bold: not distinguishable from the best mean."
    mark = f" {study['watermark']}" if study["watermark"] else ""
    loose = " Exploratory: not pre-declared." if report["declaration"]["deviations"] else ""
    return escape(words) + daggers + escape(loose + mark)
