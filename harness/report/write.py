"""Writes all formats of a study's report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.results import dumps, read_study, write_atomic
from harness.report import csvs, figures, html, latex, markdown
from harness.report.build import build_report
from harness.report.plots import evidence_plots
from harness.report.rules import check_rules

FIGURES = "figures"


def write_report(
    study_path: Path, out: Path | None = None, *, draw: bool = True, refresh: int | None = None
) -> dict[str, Path]:
    """Reads a study folder and writes report.json and everything rendered from it; returns format -> path.

    `draw` also writes the figures as files of their own; `refresh` makes the page reload itself after so many seconds.
    """
    folder = out or Path(study_path) / "report"
    source = dumps(build_report(read_study(study_path)))
    write_atomic(folder / "report.json", source + "\n")
    return {"json": folder / "report.json", **render_all(json.loads(source), folder, draw=draw, refresh=refresh)}


def render_all(
    report: Mapping[str, Any], folder: Path, *, draw: bool = True, refresh: int | None = None
) -> dict[str, Path]:
    """All formats from what report.json holds, so they cannot disagree; the same data gives the same bytes."""
    check_rules(report)
    texts = {
        "html": ("report.html", html.render(report, refresh)),
        "md": ("report.md", markdown.render(report)),
        "runs": ("runs.csv", csvs.runs(report)),
        "comparisons": ("comparisons.csv", csvs.comparisons(report)),
        "evals": ("evals.csv", csvs.evals(report)),
        "events": ("events.csv", csvs.events(report)),
        "tex": ("table.tex", latex.render(report)),
    }
    for name, content in texts.values():
        write_atomic(folder / name, content)
    paths = {kind: folder / name for kind, (name, _) in texts.items()}
    if not draw:
        return paths
    drawn = folder / FIGURES
    drawn.mkdir(parents=True, exist_ok=True)
    for plot in plots(report):
        for kind, image in figures.exported(plot).items():
            write_bytes(drawn / f"{plot.name}.{kind}", image)
    return paths | {"figures": drawn}


def plots(report: Mapping[str, Any]) -> Iterator[figures.Plot]:
    """The figures that are also files."""
    yield from (figures.learning(report, axis) for axis in html.axes_of(report))
    forest = figures.forest(report)
    if forest is not None:
        yield forest
    yield from (p["plot"] for p in evidence_plots(report))


def write_bytes(path: Path, content: bytes) -> None:
    """A binary file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
