"""`harness validate-detectors`: how well the collapse detectors work, and what they say about curves of yours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.backends.executors.local import LocalExecutor
from harness.core.errors import UsageError
from harness.core.results import read_study, write_atomic
from harness.models.recipes import recipe
from harness.monitor.detectors import RULES
from harness.monitor.replay import Replayed, replay_csv
from harness.study.compare import plan_runs, prepare_folder, run_study
from harness.study.live import LiveView
from harness.validate import faults, induced
from harness.validate.render import markdown
from harness.validate.synthetic import run_synthetic

NOTE = (
    "Written by `harness validate-detectors`. Recall and delay are over faults whose noise-free curve meets the flag "
    "condition, delays in steps from the first step at which it does; `from onset` counts from the fault's first step. "
    "Intervals: Jeffreys for shares, exact Poisson for rates."
)
FAILED, INTERRUPTED = 4, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    curves: Path | None
    synthetic: bool
    induced: bool
    faults: int
    healthy: int
    results: Path
    out: Path | None
    parallel: int
    as_json: bool


def run_validation(options: Options) -> int:
    """Curves of a folder, or the validation; the exit code."""
    if options.curves is not None:
        return _curves(options.curves, options.as_json)
    both = not (options.synthetic or options.induced)
    out = options.out or options.results / "detectors"
    known = _known(out / "report.json")
    report: dict[str, Any] = {"note": NOTE, "rules": {rule.rule_id: rule.rule_version for rule in RULES}}
    report |= {key: known[key] for key in ("synthetic", "induced") if key in known}  # the half that is not repeated
    code = 0
    if options.synthetic or both:
        report["synthetic"] = run_synthetic(options.faults, options.healthy, _tell)
    if options.induced or both:
        code, found = _induced(options)
        if code == INTERRUPTED:
            return code
        report["induced"] = found
    write_atomic(out / "report.json", json.dumps(report, indent=1) + "\n")
    write_atomic(out / "report.md", markdown(report))
    print(json.dumps(report) if options.as_json else markdown(report))
    _tell(f"report {out / 'report.md'}")
    return code


def _known(path: Path) -> dict[str, Any]:
    """An earlier report of the same rules."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("rules") == {rule.rule_id: rule.rule_version for rule in RULES} else {}


def _curves(folder: Path, as_json: bool) -> int:
    """Prints {file: events}; what was wrong goes to stderr, and a file that cannot be used has no events."""
    files = sorted(folder.rglob("*.csv")) if folder.is_dir() else []
    if not files:
        raise UsageError(f"--curves {folder}", "there is no .csv file in it", "a folder of CSV files, one per run")
    found: dict[str, list[dict[str, Any]]] = {}
    unusable = 0
    for file in files:
        name = file.relative_to(folder).as_posix()
        try:
            replayed = replay_csv(file)
        except UsageError as error:
            unusable += 1
            print(f"{name}: {error}", file=sys.stderr)
            found[name] = []
            continue
        for note in replayed.notes:
            print(f"{name}: {note}", file=sys.stderr)
        found[name] = events_of(replayed)
    if as_json:
        print(json.dumps(found))
    else:
        for name, events in found.items():
            words = [f"{e['type']} ({e['severity']}, onset {e['onset']}, confirmed {e['confirm']})" for e in events]
            print(f"{name}: {', '.join(words) or 'no event'}")
    return FAILED if unusable == len(files) else 0


def events_of(replayed: Replayed) -> list[dict[str, Any]]:
    """The events of a curve as they are printed."""
    return [
        {"type": e.type, "onset": e.onset_step, "confirm": e.confirm_step, "severity": e.severity}
        for e in replayed.events
    ]


def _induced(options: Options) -> tuple[int, Mapping[str, Any]]:
    """Runs what is not done yet, study by study; repeating the command continues it."""
    planned = faults.studies(recipe("tiny"))
    verdicts: list[induced.Verdict] = []
    code = 0
    for number, (name, (spec, fault)) in enumerate(planned.items(), start=1):
        folder = prepare_folder(spec, options.results)
        runs = plan_runs(spec, folder)
        if not all(run.done for run in runs):
            _tell(f"study {number}/{len(planned)}: {name}, {sum(not r.done for r in runs)} runs to do")
            executor = LocalExecutor(options.parallel, command=["harness", *sys.argv[1:]])
            with LiveView(runs, options.parallel) as view:
                outcome = run_study(runs, folder, executor, None, view)
            if outcome.interrupted:
                executor.shutdown(300.0)
                _tell("everything is resumable: repeat the same command to continue")
                return INTERRUPTED, {}
            code = FAILED if outcome.failed else code
            for run_id, words in outcome.failed.items():
                _tell(f"failed: {run_id}\n{words}")
        verdicts += induced.verdicts(read_study(folder), fault)
    return code, induced.summary(verdicts)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def default_parallel() -> int:
    """Half of the cores, at least one."""
    return max(1, (os.cpu_count() or 2) // 2)
