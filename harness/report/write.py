"""Writes all formats of a study's report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.results import dumps, read_study, write_atomic
from harness.report import csvs, figures, html, latex, markdown
from harness.report.build import COLUMNS, SCHEMA_VERSION, build_report
from harness.report.migrate import FROM, upgraded
from harness.report.plots import evidence_plots, length_plots
from harness.report.routing import heat_map
from harness.report.rules import check_rules
from harness.report.several import KIND, build_several, check_several

FIGURES = "figures"


def write_report(
    study_path: Path, out: Path | None = None, *, draw: bool = True, refresh: int | None = None
) -> dict[str, Path]:
    """Reads a study folder and writes report.json and everything rendered from it; returns format -> path.

    `draw` also writes the figures as files of their own; `refresh` makes the page reload itself after so many seconds.
    """
    folder = out or Path(study_path) / "report"
    source = dumps(build_report(read_study(study_path, COLUMNS)))
    write_atomic(folder / "report.json", source + "\n")
    return {"json": folder / "report.json", **render_all(json.loads(source), folder, draw=draw, refresh=refresh)}


def write_several(study_paths: Sequence[Path], out: Path) -> dict[str, Path]:
    """One report of several studies, and the whole report of each in a folder of its name beside it."""
    source = dumps(build_several([read_study(path, COLUMNS) for path in study_paths]))
    write_atomic(out / "report.json", source + "\n")
    return {"json": out / "report.json", **render_together(json.loads(source), out)}


def render_again(source: Path, out: Path) -> dict[str, Path]:
    """All formats from a report.json alone; the run folders are not needed."""
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: {error}", "it is no report.json", "a study folder, or its report.json") from None
    kinds: dict[str, Callable[[Mapping[str, Any], Path], dict[str, Path]]] = {
        "study report": render_all,
        KIND: render_together,
    }
    found = (data.get("schema_version"), data.get("kind")) if isinstance(data, dict) else (None, None)
    if found[0] not in range(FROM, SCHEMA_VERSION + 1) or found[1] not in kinds:
        raise UsageError(
            f"{source}: schema_version {found[0]!r}, kind {found[1]!r}",
            f"this version renders schema_version {FROM} to {SCHEMA_VERSION} of {' and '.join(map(repr, kinds))}",
            "make it again from the run folders: harness report STUDY",
        )  # fmt: skip
    try:
        newest = upgraded(data, "study report", SCHEMA_VERSION)
        check_rules(newest) if found[1] != KIND else check_several(newest)
    except KeyError as error:
        raise UsageError(
            f"{source}: no {error} in it", "it is cut, or was written between two versions",
            "make it again from the run folders: harness report STUDY",
        ) from None  # fmt: skip
    if newest is not data or out.resolve() != source.resolve().parent:
        write_atomic(out / "report.json", dumps(newest) + "\n")
    return {"json": out / "report.json", **kinds[found[1]](newest, out)}


def render_together(data: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """All formats of one report of several studies."""
    check_several(data)
    for name, report in zip(data["names"], data["studies"], strict=True):
        write_atomic(out / name / "report.json", dumps(report) + "\n")
        render_all(report, out / name)
    texts = {
        "html": ("report.html", html.render_several(data)),
        "md": ("report.md", markdown.render_several(data)),
        "tex": ("table.tex", "\n".join(latex.render(r) for r in data["studies"])),
        **{kind: (f"{kind}.csv", csvs.together(data, maker)) for kind, maker in csvs.MAKERS.items()},
    }
    for name, content in texts.values():
        write_atomic(out / name, content)
    return {kind: out / name for kind, (name, _) in texts.items()}


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
    yield from (p["plot"] for p in (*evidence_plots(report), *length_plots(report)))
    if (heat := heat_map(report)) is not None:
        yield heat


def write_bytes(path: Path, content: bytes) -> None:
    """A binary file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
