"""`harness extend`."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.commands.compare import run_planned
from harness.commands.options import CompareOptions
from harness.core.lock import deviations, read_lock
from harness.core.registry import build_task
from harness.study.build import Planned
from harness.study.compare import extend_study
from harness.study.measure import choose_backend


def run_extend(study: Path, seeds: int, *, parallel: int | None, mlflow: bool, as_json: bool) -> int:
    """Adds seeds, runs them, reports; the exit code."""
    spec = extend_study(study, seeds)
    lock = read_lock(study)
    for words in deviations(lock, spec, None) if lock else ():
        print(f"warning: outside the declaration, so the report will say exploratory: {words}", file=sys.stderr)
    _, measured = choose_backend(spec.model, spec.backend.model_dump())
    task = build_task(spec.task.name, spec.task.params)
    spec = spec.model_copy(update={"name": study.resolve().name})
    options = CompareOptions(results=study.resolve().parent, parallel=parallel, mlflow=mlflow, as_json=as_json)
    return run_planned(Planned(spec=spec, task=task, warnings=[], recipe_notes=[]), measured, options)
