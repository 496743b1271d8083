"""Writes one run folder. A lock keeps a second process out; everything is append-only or atomic."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from harness.core.errors import InfrastructureError
from harness.core.results import (
    EVALS,
    EVENTS,
    RESULT,
    SAMPLES,
    SPEC,
    STEPS,
    EvalRecord,
    EventRecord,
    Record,
    RunResult,
    SampleRecord,
    append_line,
    dumps,
    read_lines,
    to_json,
    truncate_after,
    write_atomic,
)
from harness.core.routing_log import ROUTING
from harness.core.spec import RunSpec

LOCK_WAIT_S = 60.0  # an interrupted predecessor finishes its step first


class RunWriter:
    """The writing side of a run folder."""

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / ".lock")
        write_atomic(folder / SPEC, spec.model_dump_json(indent=2) + "\n")

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def rewind(self, step: int) -> None:
        """Forgets what was written after `step` (-1: everything), before continuing from that checkpoint."""
        for name in (STEPS, EVENTS, EVALS, SAMPLES, ROUTING):
            truncate_after(self.folder / name, step)

    def row(self, row: Mapping[str, Any]) -> None:
        append_line(self.folder / STEPS, dumps(row))

    def records(self, name: str, records: Sequence[Record]) -> None:
        for record in records:
            append_line(self.folder / name, to_json(record))

    def evaluation(self, record: EvalRecord, samples: Sequence[SampleRecord]) -> None:
        self.records(EVALS, [record])
        self.records(SAMPLES, samples)

    def events(self, events: Sequence[EventRecord]) -> None:
        """Replaces events.jsonl: an event that escalates or clears changes its line."""
        write_atomic(self.folder / EVENTS, "".join(to_json(event) + "\n" for event in events))

    def test_record(self, step: int) -> EvalRecord | None:
        """The evaluation of the test split at a step, where it has been made."""
        found = [r for r in read_lines(self.folder / EVALS) if r["split"] == "test" and r["step"] == step]
        return EvalRecord.model_validate(found[-1]) if found else None

    def first_test_score(self) -> float | None:
        """Score of the test split before training."""
        found = [r for r in read_lines(self.folder / EVALS) if r["split"] == "test"]
        return float(found[0]["score"]) if found else None

    def result(self, result: RunResult) -> None:
        write_atomic(self.folder / RESULT, result.model_dump_json(indent=2) + "\n")

    def close(self) -> None:
        self._lock.close()


def _locked(path: Path) -> IO[str]:
    try:
        file = path.open("w")
    except OSError as error:
        raise InfrastructureError(f"cannot write {path}: {error.strerror}; choose another --results") from error
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"{path.parent}: another process is writing this run; wait for it or stop it"
                ) from None
            time.sleep(0.2)
