"""Runs as processes on this machine: pinned threads, one per GPU where there are GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.backends.executors.environment import run_environment
from harness.core.ports import RunHandle, RunState
from harness.core.results import SPEC, write_atomic
from harness.core.spec import RunSpec

LOG = "log.txt"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    slot: int


class LocalExecutor:
    """At most `parallel` runs at a time, each in a process of its own, in the order they were submitted."""

    def __init__(self, parallel: int, num_gpus: int = 0, command: Sequence[str] = ()) -> None:
        self._parallel, self._num_gpus = parallel, num_gpus
        self._command = [*command]  # what the user typed; recorded in every run's provenance
        self._waiting: deque[tuple[RunSpec, RunHandle]] = deque()
        self._children: dict[str, _Child] = {}
        self._states: dict[str, RunState] = {}
        self._handles: dict[str, RunHandle] = {}
        self._cancelled: set[str] = set()

    def submit(self, spec: RunSpec, folder: Path) -> RunHandle:
        handle = RunHandle(run_id=spec.run_id, folder=folder)
        self._handles[handle.run_id] = handle
        self._states[handle.run_id] = "waiting"
        self._waiting.append((spec, handle))
        return handle

    def poll(self) -> Mapping[str, RunState]:
        """Reaps what ended, starts what fits, and tells the state of every run."""
        for run_id, child in list(self._children.items()):
            code = child.process.poll()
            if code is not None:
                child.log.close()
                del self._children[run_id]
                stopped = code == INTERRUPTED or (code < 0 and run_id in self._cancelled)
                self._states[run_id] = "done" if code == 0 else "cancelled" if stopped else "failed"
        while self._waiting and len(self._children) < self._parallel:
            spec, handle = self._waiting.popleft()
            self._start(spec, handle)
        return dict(self._states)

    def cancel(self, run_id: str) -> None:
        """Asks a run to stop after its step; a waiting one is taken off the list."""
        self._waiting = deque((s, h) for s, h in self._waiting if h.run_id != run_id)
        if run_id in self._children:
            self._cancelled.add(run_id)
            self._children[run_id].process.send_signal(signal.SIGTERM)
        elif self._states.get(run_id) == "waiting":
            self._states[run_id] = "cancelled"

    def list(self) -> list[RunHandle]:
        return [*self._handles.values()]

    def shutdown(self, patience_s: float) -> None:
        """Cancels everything; what has not stopped after `patience_s` seconds is killed (and stays resumable)."""
        for run_id in list(self._states):
            self.cancel(run_id)
        deadline = time.monotonic() + patience_s
        for child in self._children.values():
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self.poll()

    def _start(self, spec: RunSpec, handle: RunHandle) -> None:
        handle.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(handle.folder / SPEC, spec.model_dump_json(indent=2) + "\n")
        slot = min(set(range(self._parallel)) - {c.slot for c in self._children.values()})
        environment = run_environment(spec.backend.threads, os.environ)
        if self._num_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % self._num_gpus)
        log = (handle.folder / LOG).open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.run", str(handle.folder), *self._command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        self._children[handle.run_id] = _Child(process=process, log=log, slot=slot)
        self._states[handle.run_id] = "running"
