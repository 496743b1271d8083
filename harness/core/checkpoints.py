"""The checkpoints of a run folder: which there are, what each is for, how to name one, how to remove one. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.core.collapse import Episode, best_step, first_collapse
from harness.core.errors import UsageError
from harness.core.results import CHECKPOINTS, EVALS, EVENTS, EvalRecord, EventRecord, read_lines
from harness.core.retention import ROLES, pinned
from harness.core.spec import CheckpointSpec

STATE = "state.json"  # written last into a checkpoint; what lacks it is none
NAMES = ("last", "best", *ROLES)


def listed(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder of checkpoints, oldest first."""
    return sorted(p for p in folder.glob("[0-9]*") if (p / STATE).exists()) if folder.exists() else []


def name_of(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"{step:08d}"


def size(path: Path) -> int:
    """Bytes of a folder's files."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def remove(path: Path) -> None:
    """Removes a checkpoint; a kill on the way leaves no half of one that looks whole."""
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.tmp")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """What interrupted writing and removing left behind; only the process that holds the run's lock may touch it."""
    return sorted(folder.glob(".*.tmp")) if folder.exists() else []


def events_of(run: Path) -> list[EventRecord]:
    """The events of a run folder."""
    return [EventRecord.model_validate(row) for row in read_lines(run / EVENTS)]


def evals_of(run: Path) -> list[EvalRecord]:
    """The held-out evaluations of a run folder."""
    return [EvalRecord.model_validate(row) for row in read_lines(run / EVALS)]


def find(run: Path, which: str, *, episode: Episode | None = None, margin: int = CheckpointSpec().margin) -> Path:
    """The checkpoint of a run folder by step or by name: last, best, last_healthy, half, collapsed.

    The last three need a collapse: that of events.jsonl, or the `episode` that is passed.
    """
    present = {int(p.name): p for p in listed(run / CHECKPOINTS)}
    step = _step(run, which, present, episode, margin)
    if step not in present:
        raise UsageError(
            f"checkpoint {which} of {run}" + (f" (step {step})" if step is not None and which in NAMES else ""),
            f"it has {_named(present)}",
            f"one of these steps, or {', '.join(f'`{n}`' for n in NAMES)}",
        )
    return present[step]


def _step(run: Path, which: str, present: Iterable[int], episode: Episode | None, margin: int) -> int | None:
    steps = sorted(present)
    if which == "last":
        return steps[-1] if steps else None
    if which == "best":
        return best_step(evals_of(run))
    if which in ROLES:
        episode = episode or first_collapse(events_of(run))
        if episode is None:
            raise UsageError(
                f"checkpoint {which} of {run}",
                "the run has no collapse in events.jsonl, so there is no before and after",
                "a step, `last` or `best`; `harness recover RUN --onset STEP` names a collapse by hand",
            )
        return next((s for role, s in pinned(steps, episode, margin).items() if role == which), None)
    return int(which) if which.isdigit() else None


def _named(steps: Iterable[int]) -> str:
    found = sorted(steps)
    return f"checkpoints of steps {found}" if found else "no checkpoint"
