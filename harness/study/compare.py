"""The controller of a comparison: decides what runs, never runs it itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import InfrastructureError, UsageError
from harness.core.lock import declare, extended, read_lock, write_lock
from harness.core.ports import Executor, RunState, Tracker
from harness.core.results import RESULT, RUNS, STUDY, RunResult, read_study_spec, write_study_spec
from harness.core.search import SEARCH
from harness.core.spec import RunSpec, StudySpec
from harness.study.build import run_specs

POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run of the study and whether it is finished already."""

    spec: RunSpec
    folder: Path
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a study ended."""

    finished: list[str]  # run ids
    failed: dict[str, str]  # run id -> last words of its log
    interrupted: bool


def prepare_folder(spec: StudySpec, results: Path, *, two_stage: bool = False) -> Path:
    """Creates or checks the study's folder; study.lock and study.yaml are written before the first run."""
    folder = results / spec.name
    make_writable(folder)
    if (folder / SEARCH).exists():
        raise UsageError(
            f"study {spec.name}", "a search of that name exists, and their runs must not be mixed", "another --name"
        )
    if (folder / STUDY).exists():
        known = read_study_spec(folder)
        lock = read_lock(folder)
        if known.hash != spec.hash and (lock is None or lock.study_hash != spec.hash):  # as begun, since extended
            raise UsageError(
                f"study {spec.name}",
                "a study of that name exists with other settings, and its runs must not be mixed with these",
                "another --name, or the settings it was begun with",
            )
    else:
        write_lock(folder, declare(spec, two_stage=two_stage))
        write_study_spec(folder, spec)
    return folder


def extend_study(folder: Path, num_seeds: int) -> StudySpec:
    """Adds seeds to a study whose runs are done, noted in its lock; an unfinished extension is continued instead."""
    spec, lock = read_study_spec(folder), read_lock(folder)
    if lock is None:
        raise UsageError(f"{folder}: no study.lock", "the study declared nothing, so there is no plan to extend",
                         "`harness compare --name NEW` with more seeds")  # fmt: skip
    if num_seeds < 1:
        raise UsageError(f"--seeds {num_seeds}", "nothing would be added", "1 or more")
    left = [r for r in plan_runs(spec, folder) if not r.done]
    if left:
        if lock.extensions and len(lock.extensions[-1].seeds) == num_seeds:
            return spec
        raise UsageError(
            f"{folder}: {len(left)} runs are not finished",
            "seeds are added after the look at the planned ones, or the plan's error rate does not hold",
            "repeat the command that began the study, or the last `harness extend`",
        )
    first = max(spec.seeds) + 1
    added = tuple(range(first, first + num_seeds))
    spec = spec.model_copy(update={"seeds": (*spec.seeds, *added)})
    write_lock(folder, extended(lock, added))
    write_study_spec(folder, spec)
    return spec


def make_writable(folder: Path) -> None:
    """Creates a folder under a results folder; UsageError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"results folder {folder.parent}",
            f"it cannot be written: {error.strerror}",
            "another --results, or its permissions",
        ) from None


def plan_runs(spec: StudySpec, folder: Path) -> list[PlannedRun]:
    """Every run of the study, in the order in which they start."""
    planned = []
    for run in run_specs(spec):
        target = folder / RUNS / run.run_id
        planned.append(PlannedRun(spec=run, folder=target, done=_finished(target)))
    return planned


def _finished(folder: Path) -> bool:
    path = folder / RESULT
    return path.exists() and RunResult.model_validate_json(path.read_text(encoding="utf-8")).status != "infra_failed"


def run_study(
    planned: list[PlannedRun],
    study: Path,
    executor: Executor,
    tracker: Tracker | None,
    watch: Callable[[Mapping[str, RunState]], None],
) -> Outcome:
    """Runs what is not done. One failed run does not stop the others; an interrupt leaves all resumable."""
    for run in planned:
        if not run.done:
            executor.submit(run.spec, run.folder)
    mirrored = sum(r.done for r in planned)
    interrupted = False
    states: Mapping[str, RunState] = {}
    try:
        while True:
            states = executor.poll()
            watch(states)
            done = sum(s == "done" for s in states.values())
            if all(s in ("done", "failed", "cancelled") for s in states.values()):
                break
            if tracker is not None and done + sum(r.done for r in planned) > mirrored:
                mirrored = done + sum(r.done for r in planned)
                tracker.mirror(study)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        interrupted = True
    lost = ("failed",) if interrupted else ("failed", "cancelled")  # stopped by somebody else: not done either
    failed = {r.spec.run_id: last_words(r.folder / "log.txt") for r in planned if states.get(r.spec.run_id) in lost}
    finished = [r.spec.run_id for r in planned if r.done or states.get(r.spec.run_id) == "done"]
    return Outcome(finished=finished, failed=failed, interrupted=interrupted)


def last_words(log: Path, num_lines: int = 4) -> str:
    """The end of a run's log."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise InfrastructureError(f"cannot read {log}: {error.strerror}") from error
    return "\n".join(lines[-num_lines:])
