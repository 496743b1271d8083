"""`harness report` and `harness mirror`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.backends.trackers.mlflow import MlflowTracker
from harness.commands.compare import curves
from harness.commands.recover import show_recovery
from harness.commands.verdict import refused
from harness.core.ablation import ABLATION
from harness.core.errors import UsageError
from harness.core.recovery import RECOVERY
from harness.core.results import SCHEMA_VERSION, dumps, read_study_spec
from harness.core.search import FINAL, SEARCH
from harness.report.ablation_page import write_ablation_report
from harness.report.recovery_page import render_recovery
from harness.report.terminal import ASCII, terminal_table
from harness.report.write import render_again, write_report, write_several


def run_reports(studies: Sequence[Path], out: Path | None, as_json: bool, watch: int | None = None) -> int:
    """The report of one study, or one report of several."""
    if len(studies) == 1 and studies[0].suffix == ".json":
        folder, record = out or studies[0].parent, _recovery_record(studies[0])
        paths = render_recovery(record, folder) if record else render_again(studies[0], folder)
        print("\n".join(f"{kind:7} {path}" for kind, path in paths.items()))
        return 0
    if len(studies) == 1:
        return run_report(studies[0], out, as_json, watch)
    if watch is not None:
        raise UsageError("--watch with several studies", "a page that reloads itself shows one study", "one of them")
    for study in studies:
        if (study / RECOVERY).exists() or (study / SEARCH).exists():
            raise UsageError(f"{study}", "it is a search or a recovery study, which has no arms to average",
                             "studies made by harness compare or ablate; of a search, its folder `final`")  # fmt: skip
    folder = out or studies[0].resolve().parent / f"report-{'-'.join(s.resolve().name for s in studies)}"[:120]
    paths = write_several(studies, folder)
    data = json.loads(paths["json"].read_text(encoding="utf-8"))
    if as_json:
        print(dumps({**data, "files": {kind: str(path) for kind, path in paths.items()}}))
    else:
        print("\n\n".join([data["headline"], *data["details"]]).translate(ASCII))
        print("\n".join(f"{kind:7} {path}" for kind, path in paths.items()))
    return max(refused(r) for r in data["studies"])


def _recovery_record(file: Path) -> dict[str, Any] | None:
    """What a recovery.json holds; None for any other file."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(data, dict) and {"spec", "attempts", "rows", "answer"} <= data.keys()
    return dict(data) if known and data.get("schema_version") == SCHEMA_VERSION else None


def run_report(study: Path, out: Path | None, as_json: bool, watch: int | None = None) -> int:
    """Builds the report of a study folder and prints its table; 3 where the comparison is INVALID.

    `watch`: first writes it again every so many seconds until no run is left.
    """
    if (study / RECOVERY).exists():
        if out is not None:
            raise UsageError(f"--out {out}", "a recovery study is reported in its own folder", "no --out")
        show_recovery(study, as_json=as_json)
        return 0
    if (study / SEARCH).exists():
        raise UsageError(
            f"{study}", "a search is a folder of studies, and its own report is written from its trials",
            f"{study / FINAL} or the folder of an algorithm in it, or the harness tune command again",
        )  # fmt: skip
    if watch is not None:
        _watch(study, out, watch)
    paths = write_report(study, out)
    if (study / ABLATION).exists():
        paths |= write_ablation_report(study)
    data = json.loads(paths["json"].read_text(encoding="utf-8"))
    if as_json:
        print(dumps({**data, "files": {kind: str(path) for kind, path in paths.items()}}))
    else:
        print(terminal_table(data, shutil.get_terminal_size((100, 24)).columns))
        print("\n".join(f"{kind:7} {path}" for kind, path in paths.items()))
    return refused(data)


def _watch(study: Path, out: Path | None, seconds: int) -> None:
    """Refreshes the page while the study runs; the page reloads itself."""
    while True:
        paths = write_report(study, out, draw=False, refresh=seconds)
        tally = json.loads(paths["json"].read_text(encoding="utf-8"))["tally"]
        left = tally["unfinished"] + tally["missing"]
        if not left:
            return
        print(f"{time.strftime('%H:%M:%S')} {tally['planned'] - left} of {tally['planned']} runs done: "
              f"{paths['html'].resolve().as_uri()}", file=sys.stderr)  # fmt: skip
        time.sleep(seconds)


def run_mirror(study: Path) -> int:
    """Mirrors a study folder; 4 where the tracking server could not be reached."""
    read_study_spec(study)
    tracker = MlflowTracker(os.environ.get("MLFLOW_TRACKING_URI"), study.resolve().parent)
    tracker.mirror(study)
    tracker.close()
    if tracker.error is None:
        print(f"mirrored: {curves(tracker.uri)}")
    return 0 if tracker.error is None else 4
