"""Functions that may hang, raise or eat memory, called in processes of their own under a time limit.

A call that takes too long costs its process, which is replaced; the other calls go on. No signals and no threads inside
a worker, so any library works there.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCRIPT = Path(__file__).with_name("serve.py")
START_S = 120.0  # for a worker to import what it needs, on a busy machine
MOST = 4  # workers by default, however many processors there are: several runs may share the machine
CHUNK_CALLS, CHUNK_BYTES = 32, 1 << 14  # sent to a worker at once
PIPE_BYTES = 1 << 20  # on Linux; so a chunk fits into the pipe, even when its last response is very long
WORKERS_VARIABLE = "HARNESS_GRADING_WORKERS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What became of one call."""

    value: Any = None
    failure: Literal["error", "timeout", "died"] | None = None
    why: str = ""


class StartError(Exception):
    """A worker could not load its function."""


def num_workers() -> int:
    """Processes of a pool: HARNESS_GRADING_WORKERS, else one per usable processor and at most four."""
    given = os.environ.get(WORKERS_VARIABLE, "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable)


class Workers:
    """A pool of processes that all run one function of one file; they start when first needed."""

    def __init__(
        self, file: Path, function: str, *, limit_s: float, memory_mib: int = 0, count: int | None = None
    ) -> None:
        self._command = [sys.executable, str(SCRIPT), str(file), function, str(memory_mib)]
        self._limit_s, self._count = limit_s, count or num_workers()
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()
        weakref.finalize(self, _end, self._alive)

    def check(self) -> None:
        """Starts one worker. StartError where its function cannot be loaded."""
        self._give(self._take())

    def map(self, calls: Sequence[Sequence[Any]]) -> list[Called]:
        """The function applied to each tuple of arguments (JSON data), in order, each under the time limit."""
        results: list[Called] = [Called()] * len(calls)
        lines = ((i, json.dumps(arguments, default=str).encode() + b"\n") for i, arguments in enumerate(calls))
        count = min(self._count, max(1, len(calls)))
        most = max(1, min(CHUNK_CALLS, len(calls) // (4 * count)))
        with ThreadPoolExecutor(count) as threads:
            for done in threads.map(lambda _: self._work(lines, most, results), range(count)):
                assert done is None
        return results

    def _work(self, lines: Iterator[tuple[int, bytes]], most: int, results: list[Called]) -> None:
        worker = self._take()
        try:
            while True:
                with self._lock:
                    pending = _chunk(lines, most)
                if not pending:
                    return
                while pending:
                    done = worker.calls([line for _, line in pending], self._limit_s)
                    for (index, _), called in zip(pending, done, strict=False):
                        results[index] = called
                    pending = pending[len(done) :]
                    if done[-1].failure in ("timeout", "died"):
                        self._drop(worker)
                        worker = self._take()
        finally:
            self._give(worker)

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self._command)
        self._alive.add(worker.process)
        first = worker.receive(START_S)
        if first.failure is not None:
            self._drop(worker)
            raise StartError(first.why)
        return worker

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _drop(self, worker: _Worker) -> None:
        _kill(worker.process)
        self._alive.discard(worker.process)

    def close(self) -> None:
        """Ends all processes."""
        self._idle.clear()
        _end(self._alive)


def _chunk(lines: Iterator[tuple[int, bytes]], most: int) -> list[tuple[int, bytes]]:
    """Some calls to send at once: so few bytes that sending need not wait for a result."""
    chunk, size = [], 0
    for index, line in lines:
        chunk.append((index, line))
        size += len(line)
        if len(chunk) >= most or size > CHUNK_BYTES:
            break
    return chunk


class _Worker:
    """One process and the bytes of its answers that are not read yet."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # an interrupt at the terminal ends the run, which ends its workers
        )
        self._rest = b""
        if self.process.stdin is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(self.process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def calls(self, lines: Sequence[bytes], limit_s: float) -> list[Called]:
        """One result per line, up to the first call that cost the process its life."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"".join(lines))
            self.process.stdin.flush()
        except OSError:
            return [Called(failure="died", why="its process had ended")]
        done: list[Called] = []
        while len(done) < len(lines) and not (done and done[-1].failure in ("timeout", "died")):
            done.append(self.receive(limit_s))
        return done

    def receive(self, limit_s: float) -> Called:
        assert self.process.stdout is not None
        file, until = self.process.stdout.fileno(), time.monotonic() + limit_s
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return Called(failure="timeout", why=f"no result within {limit_s:g} s")
            more = os.read(file, 1 << 16)
            if not more:
                return Called(failure="died", why=f"its process ended ({_ending(self.process)})")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        if "error" in message:
            return Called(failure="error", why=message["error"])
        return Called(value=message["value"])


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "closed its output"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _end(alive: set[subprocess.Popen[bytes]]) -> None:
    for process in list(alive):
        _kill(process)
    alive.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was left to be written has no reader any more
                pipe.close()
