"""`harness gc` frees what nothing refers to, says what it frees, and leaves the rest alone."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.checkpoints import listed, name_of
from harness.core.results import CHECKPOINTS, EVALS, EVENTS, RESULT, RUNS, append_line, dumps
from harness.core.spec import RunSpec
from harness.study.disk import human
from tests.cli.test_usage import run as command
from tests.fakes.small_runs import make_folder, run_spec

STEPS = (0, 10, 20, 30, 37, 40, 50, 60)
SIZE = 1000


def a_run(study: Path, *, finished: bool = True, collapse: bool = False, **changes: Any) -> Path:
    """A run folder with checkpoints that are files of known size; validation is best at step 37."""
    spec = run_spec(steps=60, **changes)
    folder = make_folder(spec, study / RUNS)
    for step in STEPS:
        place = folder / CHECKPOINTS / name_of(step)
        place.mkdir(parents=True)
        (place / "policy.safetensors").write_bytes(b"x" * (SIZE - 2))
        (place / "state.json").write_text("{}")
    for step, score in ((0, 0.1), (37, 0.6), (60, 0.3)):
        record = {"step": step, "sampled_tokens_cum": step, "split": "validation", "task": "chain", "samples": 1,
                  "score": score, "reward_mean": score, "length_mean": 1, "truncated": 0, "questions": []}  # fmt: skip
        append_line(folder / EVALS, dumps(record))
    if collapse:
        event = {
            "type": "reward_collapse",
            "severity": "COLLAPSE",
            "onset_step": 45,
            "confirm_step": 48,
            "rule_id": "r",
        }
        append_line(folder / EVENTS, dumps(event))
    if finished:
        (folder / RESULT).write_text("{}")
    return folder


def steps_of(run: Path) -> list[int]:
    return [int(p.name) for p in listed(run / CHECKPOINTS)]


def gc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command(monkeypatch, "gc", *map(str, arguments), "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_dry_run_tells_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "study")
    before = sorted(tmp_path.rglob("*"))
    found = gc(monkeypatch, capsys, tmp_path, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert found["would_free_bytes"] == 5 * SIZE
    assert found["freed_bytes"] == 0
    assert command(monkeypatch, "gc", str(run), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "would free 4.9 KiB, 2.9 KiB stay" in said
    for word in ("would go", "kept: best", "kept: newest"):
        assert word in said


@pytest.mark.parametrize(
    ("changes", "arguments", "left"),
    [
        ({}, [], [37, 50, 60]),
        ({"checkpoints": {"newest": 1}}, [], [37, 60]),
        ({"collapse": True}, [], [20, 30, 37, 50, 60]),
        ({"collapse": True, "checkpoints": {"margin": 20}}, [], [20, 37, 50, 60]),
        ({"collapse": True}, ["--keep", "ladder"], [0, 10, 20, 30, 37, 40, 50, 60]),
        ({}, ["--keep", "last"], [37, 60]),
        ({}, ["--keep", "none"], [37, 60]),
        ({"collapse": True}, ["--keep", "last", "--force"], [60]),
        ({"collapse": True}, ["--keep", "last_healthy", "--force"], [30]),
        ({}, ["--keep", "none", "--force"], []),
        ({"finished": False}, [], [0, 10, 20, 30, 37, 40, 50, 60]),
        ({"finished": False}, ["--keep", "none", "--force"], []),
    ],
    ids=str,
)
def test_what_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    arguments: list[str],
    left: list[int],
) -> None:
    run = a_run(tmp_path / "study", **changes)
    other = a_run(tmp_path / "other", seed=1)
    found = gc(monkeypatch, capsys, tmp_path / "study", *arguments)
    assert steps_of(run) == left
    assert steps_of(other) == [*STEPS]
    assert found["freed_bytes"] == found["would_free_bytes"] == (len(STEPS) - len(left)) * SIZE
    assert [i["step"] for i in found["runs"][0]["items"] if i["kept"]] == left
    assert gc(monkeypatch, capsys, tmp_path / "study", *arguments)["freed_bytes"] == 0


def test_a_checkpoint_that_another_run_starts_from_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In whatever study that run lies; only --force removes it."""
    donor = a_run(tmp_path / "study")
    make_folder(run_spec(seed=2, start={"run": str(donor), "checkpoint": "20"}), tmp_path / "later" / RUNS)
    gc(monkeypatch, capsys, donor, "--keep", "last")
    assert steps_of(donor) == [20, 37, 60]
    gc(monkeypatch, capsys, donor, "--keep", "last", "--force")
    assert steps_of(donor) == [60]


def test_a_run_that_is_being_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "study")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = gc(monkeypatch, capsys, tmp_path, "--keep", "none", "--force")
        assert found["runs"][0]["state"] == "running"
        assert steps_of(run) == [*STEPS]
    gc(monkeypatch, capsys, tmp_path, "--keep", "none", "--force")
    assert steps_of(run) == []


def test_leftovers_of_interruptions_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "study", checkpoints={"newest": 9})
    half = run / CHECKPOINTS / ".00000070.tmp"
    half.mkdir()
    (half / "policy.safetensors").write_bytes(b"y" * 77)
    (run / "rollouts").mkdir()
    (run / "rollouts" / "00000003.tmp").write_bytes(b"z" * 5)
    (run / f".{RESULT}.123.tmp").write_bytes(b"z")
    assert gc(monkeypatch, capsys, run)["freed_bytes"] == 83
    assert steps_of(run) == [*STEPS]
    assert not [*run.rglob("*.tmp")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["neither a run folder"]),
        ([".", "--keep", "bst"], ["'bst'", "did you mean best"]),
        ([".", "--keep", "none,best"], ["both or nothing"]),
        ([".", "--keep", ","], ["both or nothing"]),
    ],
)
def test_gc_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    run = a_run(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "gc", *arguments) == 2
    said = capsys.readouterr().err
    for word in ("error:", "why:", "instead:", *words):
        assert word in said
    assert steps_of(run) == [*STEPS]


def test_a_run_folder_from_before_the_retention_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "study")
    data = json.loads((run / "spec.json").read_text())
    del data["checkpoints"]
    (run / "spec.json").write_text(json.dumps(data))
    assert RunSpec.model_validate(data).hash == run_spec(steps=60).hash, "retention is not hashed"
    gc(monkeypatch, capsys, run)
    assert steps_of(run) == [37, 50, 60]


def test_sizes_are_readable() -> None:
    assert [human(n) for n in (0, 1023, 1536, 5 * 2**20, 3 * 2**40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3,072.0 GiB",
    ]  # fmt: skip
