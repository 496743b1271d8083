"""The verdict on a terminal: plain text that fits its width."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report import text

ASCII = str.maketrans(
    {"\u2212": "-", "\u2026": "~", "\u00b1": "+-", "\u2020": "*", "\u2192": "->"}
)  # safe in any encoding


def terminal_table(report: Mapping[str, Any], width: int = 80) -> str:
    """Answer and verdict table in at most `width` columns; less important columns go first."""
    width = max(40, width)
    lines = [*textwrap.wrap(report["answer"]["headline"], width), ""]
    columns, rows = _cells(report)
    while _width(columns, rows) > width and len(columns) > 2:
        drop = _least(columns)
        if drop is None:
            break
        columns = columns[:drop] + columns[drop + 1 :]
        rows = [row if len(row) == 1 else row[:drop] + row[drop + 1 :] for row in rows]
    lines += _draw(columns, rows, width)
    for detail in report["answer"]["details"]:
        lines += ["", *textwrap.wrap(detail, width)]
    if report["study"]["watermark"]:
        lines += ["", *textwrap.wrap(report["study"]["watermark"], width)]
    return "\n".join(lines).translate(ASCII)


def _cells(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    arms = {a["name"]: a for a in report["arms"]}
    pairs = {c["a"]: c for c in report["comparisons"]}
    rows: list[list[str]] = []
    for g in report["groups"]:
        if len(report["groups"]) > 1:
            rows.append([g["title"]])
        for name in g["arms"]:
            a, c = arms[name], pairs.get(name)
            difference = "reference" if name == g["reference"] else text.value_interval(c, "signed") if c else "n/a"
            rows.append([
                _short(name, 20), text.score(a["score"]["value"]), _bare(a["score"]), difference.split(" (n=")[0],
                _short(_verdict(c), 19), f"{a['collapse']['k']}/{a['collapse']['n']}", str(a["n"]),
            ])  # fmt: skip
    return ["arm", "score", "95 %", "vs reference", "label", "coll.", "n"], rows


def _verdict(c: Mapping[str, Any] | None) -> str:
    if c is None:
        return ""
    return {"A>B": "better", "B>A": "worse"}.get(c["label"], text.label_words(c))


def _bare(estimate: Mapping[str, Any]) -> str:
    return text.interval(estimate) if estimate["low"] is not None else "no interval"


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\u2026"


def _least(columns: Sequence[str]) -> int | None:
    for name in ("95 %", "coll.", "n", "vs reference", "label"):
        if name in columns:
            return columns.index(name)
    return None


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    full = [columns, *(row for row in rows if len(row) > 1)]
    return [max(len(row[i]) for row in full) for i in range(len(columns))]


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(_widths(columns, rows)) + 2 * (len(columns) - 1)


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    sizes = _widths(columns, rows)
    rule = "-" * min(width, _width(columns, rows))
    body = [_line(row, sizes) if len(row) > 1 else f"{_short(row[0], width - 1)}:" for row in rows]
    return [_line(columns, sizes), rule, *body]


def _line(row: Sequence[str], sizes: Sequence[int]) -> str:
    return "  ".join(x.ljust(s) for x, s in zip(row, sizes, strict=True)).rstrip()
