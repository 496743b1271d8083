"""Calls in processes of their own: results in order, failures told apart, nobody waits for a call that hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tasks.workers import StartError, Workers

CODE = """
import os, sys, time
def f(kind, x):
    print("noise on standard output")
    if kind == "hang":
        while True:
            pass
    if kind == "raise":
        raise ValueError(f"bad {x}")
    if kind == "leave":
        sys.exit(3)
    if kind == "die":
        os._exit(7)
    if kind == "object":
        return object()
    if kind == "eat":
        return len(bytearray(1 << 33))
    return x * 2
"""


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    (tmp_path / "mine.py").write_text(CODE)
    return Workers(tmp_path / "mine.py", "f", limit_s=1.0, memory_mib=1024, count=2)


def test_results_come_in_order(workers: Workers) -> None:
    assert [c.value for c in workers.map([("ok", i) for i in range(300)])] == [2 * i for i in range(300)]
    assert workers.map([]) == []


def test_failures_are_told_apart_and_the_others_go_on(workers: Workers) -> None:
    kinds = ["ok", "raise", "leave", "die", "object", "eat", "hang", "ok", "hang", "ok"]
    start = time.monotonic()
    found = workers.map([(kind, i) for i, kind in enumerate(kinds)])
    assert [c.failure for c in found] == [
        None, "error", "error", "died", "error", "error", "timeout", None, "timeout", None,
    ]  # fmt: skip
    assert "ValueError: bad 1 (mine.py, line 9)" in found[1].why
    assert "exit code 7" in found[3].why
    assert "MemoryError" in found[5].why
    assert "within 1 s" in found[6].why
    assert [found[i].value for i in (0, 7, 9)] == [0, 14, 18]
    assert time.monotonic() - start < 30


def test_no_process_is_left(workers: Workers) -> None:
    workers.map([("ok", 1), ("hang", 2)])
    pids = [p.pid for p in workers._alive]
    assert pids
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        ("def f(: pass", "f", "SyntaxError"),
        ("import not_there", "f", "No module named 'not_there'"),
        ("def score(x): return x", "f", "has no function f; it has score"),
    ],
)
def test_what_cannot_be_loaded_is_said_at_once(tmp_path: Path, code: str, name: str, expected: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(StartError, match=expected):
        Workers(tmp_path / "mine.py", name, limit_s=1.0).check()
