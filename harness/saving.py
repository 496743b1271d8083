"""When a run saves, what it keeps, and how it begins from another run's checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.checkpoints import evals_of, events_of, find, listed, remove, size
from harness.core.collapse import Episode, best_step, first_collapse
from harness.core.results import CHECKPOINTS, EVENTS, SPEC
from harness.core.retention import keep
from harness.core.spec import CheckpointSpec, RunSpec, StartSpec, TaskSpec
from harness.train import checkpoint
from harness.train.loop import Progress
from harness.train.update import Optimizers

SAVE_EVERY_S = 20.0  # between checkpoints, at least
SAVE_SHARE = 0.05  # of the time may go into those that only the clock asks for


class Checkpoints:
    """The checkpoints of a run while it is written.

    At steps that are the same in every execution: those of the ladder, a new best on validation, the confirmation of
    a collapse. Between them by the clock, so that little is lost in an interruption.
    """

    def __init__(self, run: Path, spec: CheckpointSpec) -> None:
        self.run, self.folder, self.spec = run, run / CHECKPOINTS, spec
        self.best: int | None = None  # step of the best score on validation so far
        self._episode: Episode | None = None
        self._events_size = 0
        self._saved_at, self._cost = time.monotonic(), 0.0

    def newest(self) -> Path | None:
        """Where an interrupted run continues."""
        found = listed(self.folder)
        return found[-1] if found else None

    def reread(self) -> None:
        """Takes best score and collapse from the files, after they were rewound to the newest checkpoint."""
        self.best = best_step(evals_of(self.run))
        self._events_size = 0
        self._episode = None

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        episode = self._collapse()
        on_ladder = self.spec.every > 0 and step % self.spec.every == 0
        confirmed = episode is not None and episode.confirm == step
        by_clock = time.monotonic() - self._saved_at > max(SAVE_EVERY_S, self._cost / SAVE_SHARE)
        return on_ladder or confirmed or by_clock or (self.spec.best and step == self.best)

    def save(self, progress: Progress, optimizers: Optimizers, extra: Mapping[str, Any]) -> None:
        """Writes a checkpoint, then removes those that are no longer needed."""
        start = time.monotonic()
        checkpoint.save(self.folder, progress, optimizers, extra)
        self._prune(done=False)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start

    def finish(self) -> None:
        """The run has ended: without a collapse, its ladder is not needed any more."""
        self._prune(done=True)

    def _prune(self, *, done: bool) -> None:
        present = {int(p.name): p for p in listed(self.folder)}
        if not present:
            return
        kept = keep(
            present,
            self.spec,
            size=size(present[max(present)]),
            best=self.best,
            episode=self._collapse(),
            done=done,
        )
        for step, path in present.items():
            if step not in kept:
                with suppress(OSError):  # what cannot be removed now is for `harness gc`
                    remove(path)

    def _collapse(self) -> Episode | None:
        """The run's first collapse; events.jsonl is read again only after it has grown."""
        file = self.run / EVENTS
        grown = file.stat().st_size if file.exists() else 0
        if grown != self._events_size:
            self._events_size, self._episode = grown, first_collapse(events_of(self.run))
        return self._episode


def begin_elsewhere(start: StartSpec, task: TaskSpec, optimizers: Optimizers) -> tuple[Progress, dict[str, float]]:
    """Loads the checkpoint that `start` names: counters as far as they are not reset, and the donor's calibration.

    A range that was measured for the donor stays in force, unless the budget is reset: then the run begins anew.
    """
    path = find(Path(start.run), start.checkpoint)
    found, state = checkpoint.load(
        path, optimizers, moments="optimizer" not in start.reset, critic="critic" not in start.reset
    )
    if "budget" in start.reset:
        return Progress(), {}
    if "adaptive" in start.reset:
        found = replace(found, history=(), penalty_weight=None)
    if start.prompts is not None or not _same_task(Path(start.run), task):
        found = replace(found, carried=())  # surplus groups are answers to other questions
    return found, dict(state["calibration"])


def _same_task(folder: Path, task: TaskSpec) -> bool:
    spec = folder / SPEC
    return spec.exists() and RunSpec.model_validate_json(spec.read_text(encoding="utf-8")).task == task
