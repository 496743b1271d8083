"""The monitor of a running run: rows and evaluations in, events.jsonl out, and whether to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.assemble import Assembly
from harness.core.results import EvalRecord, RunStatus
from harness.core.runwriter import RunWriter
from harness.monitor.outcome import ends_the_run, outcome
from harness.monitor.scores import Evaluation, of_record
from harness.monitor.watch import Monitor, Seen, close, learned, update
from harness.records import offending_samples, rollout_file
from harness.train import checkpoint
from harness.train.loop import StepOutcome


class Watching:
    """Holds the monitor's state between steps; the detectors themselves are pure."""

    def __init__(self, parts: Assembly, writer: RunWriter) -> None:
        self._parts, self._writer = parts, writer
        self._waiting: list[Evaluation] = []  # made before the row of their step was written
        self._state = Monitor(siblings=parts.algorithm.siblings, reward_low=parts.task.info.reward_range[0])

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Continues from a checkpoint (None: from the start), and writes the events that were known there."""
        if saved is not None:
            self._state = Monitor.model_validate(saved)
        self._writer.events(self._state.events)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self._state.model_dump(mode="json")

    def evaluated(self, record: EvalRecord) -> None:
        """Takes a held-out evaluation, after the row of its step; one that was taken before changes nothing."""
        rows = self._state.series.steps
        if record.split in self._state.scores.bases and (not rows or rows[-1] < record.step):
            self._waiting.append(of_record(record))
        else:
            self._take(update(self._state, None, [of_record(record)], checkpoints=self._checkpoints()))

    @property
    def over(self) -> bool:
        """Whether the run's policy ends it here."""
        return ends_the_run(self._state.events, self._parts.spec.monitor.on_collapse)

    def step(self, row: Mapping[str, Any], happened: StepOutcome) -> None:
        """Takes a row of steps.jsonl; keeps responses of a suspicious step and the batch of a confirming one."""
        seen = update(self._state, row, self._waiting, checkpoints=self._checkpoints())
        self._waiting = []
        if seen.look:
            self._writer.records("samples.jsonl", offending_samples(happened, self._parts))
        if any(e.confirm_step == happened.progress.step for e in seen.events):
            rollout_file(self._writer.folder, happened)
        self._take(seen)

    def finish(self, steps: int) -> RunStatus:
        """How the run ended; completes the evidence of its events."""
        self._take(Seen(state=close(self._state), events=self._state.events))
        trained = self._parts.algorithm.updates.epochs > 0
        return outcome(self._state.events, steps=steps, learned=learned(self._state) if trained else None)

    def _take(self, seen: Seen) -> None:
        self._state = seen.state
        if seen.events:
            self._writer.events(seen.state.events)

    def _checkpoints(self) -> Sequence[int]:
        return [int(path.name) for path in checkpoint.steps(self._writer.checkpoints)]
