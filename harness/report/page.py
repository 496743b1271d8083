"""A page of sections, each with a table and figures: one self-contained HTML file, and the figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from harness.core.results import write_atomic
from harness.report import figures
from harness.report.html import rendered
from harness.report.write import FIGURES, write_bytes

HALF = 6.0  # inches: wider figures take both columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure and what stands above it."""

    title: str
    plot: figures.Plot
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, a sentence, a table whose first row is its head, and figures."""

    title: str
    words: str = ""
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[Drawn] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything of a page; sections that hold nothing are left out."""

    title: str
    headline: str
    lead: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The HTML: no network, prints."""
    sections = [
        {"title": s.title, "words": s.words, "rows": s.rows,
         "figures": [{"title": f.title, "words": f.words, "svg": Markup(figures.svg(f.plot)),
                      "wide": f.plot.size[0] > HALF} for f in s.figures]}
        for s in page.sections if s.rows or s.figures
    ]  # fmt: skip
    shown = {"title": page.title, "headline": page.headline, "lead": page.lead, "notes": page.notes}
    return rendered("sections.html.j2", page.title, p={**shown, "sections": sections})


def write_page(page: Page, folder: Path, stem: str) -> Mapping[str, Path]:
    """Writes `stem`.html, and every figure as SVG and PNG under figures/."""
    write_atomic(folder / f"{stem}.html", render(page))
    drawn = folder / FIGURES
    drawn.mkdir(parents=True, exist_ok=True)
    for section in page.sections:
        for figure in section.figures:
            for kind, image in figures.exported(figure.plot).items():
                write_bytes(drawn / f"{figure.plot.name}.{kind}", image)
    return {f"{stem}_html": folder / f"{stem}.html", f"{stem}_figures": drawn}
