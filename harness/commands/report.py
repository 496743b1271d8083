"""`harness report` and `harness mirror`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.backends.trackers.mlflow import MlflowTracker
from harness.commands.compare import curves
from harness.core.results import read_study_spec
from harness.report.terminal import terminal_table
from harness.report.write import write_report


def run_report(study: Path, out: Path | None, as_json: bool) -> int:
    """Builds the report of a study folder and prints its table."""
    paths = write_report(study, out)
    data = json.loads(paths["json"].read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({kind: str(path) for kind, path in paths.items()}))
    else:
        print(terminal_table(data, shutil.get_terminal_size((100, 24)).columns))
        print("\n".join(f"{kind:7} {path}" for kind, path in paths.items()))
    return 0


def run_mirror(study: Path) -> int:
    """Mirrors a study folder; 4 where the tracking server could not be reached."""
    read_study_spec(study)
    tracker = MlflowTracker(os.environ.get("MLFLOW_TRACKING_URI"), study.resolve().parent)
    tracker.mirror(study)
    tracker.close()
    if tracker.error is None:
        print(f"mirrored: {curves(tracker.uri)}")
    return 0 if tracker.error is None else 4
