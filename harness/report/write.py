"""Writes all formats of a study's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.results import dumps, read_study, write_atomic
from harness.report import csvs, html, markdown
from harness.report.build import build_report


def write_report(study_path: Path, out: Path | None = None) -> dict[str, Path]:
    """Reads a study folder and writes report.json, report.html, report.md and the CSVs; returns format -> path.

    The pages are rendered from what report.json holds after a round trip, so the formats cannot disagree.
    """
    study = read_study(study_path)
    folder = out or Path(study_path) / "report"
    source = dumps(build_report(study))
    report: dict[str, Any] = json.loads(source)
    files = {
        "json": ("report.json", source + "\n"),
        "html": ("report.html", html.render(report)),
        "md": ("report.md", markdown.render(report)),
        "runs": ("runs.csv", csvs.runs(report)),
        "comparisons": ("comparisons.csv", csvs.comparisons(report)),
        "evals": ("evals.csv", csvs.evals(study)),
    }
    for name, content in files.values():
        write_atomic(folder / name, content)
    return {kind: folder / name for kind, (name, _) in files.items()}
