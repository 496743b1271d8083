"""A run that is interrupted, wherever and however, ends with the numbers of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.run
from harness.core.results import EVALS, STEPS, read_lines, read_run
from harness.core.runwriter import RunWriter
from harness.core.spec import RunSpec
from harness.run import INTERRUPTED, main
from harness.train import checkpoint
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

ARMS = {
    "grpo": {},
    "ppo": {"overrides": {"advantage.warmup_steps": 2}},
    "dapo": {},
    "gfpo_adaptive": {"overrides": {"selection.warmup_prompts": 2}},
    "gspo_calibrated": {},
}


class Killed(BaseException):
    """The process is gone: nothing of ours may catch this."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunSpec, dict[str, Any]]]:
    """An uninterrupted run of an arm, once."""
    known: dict[str, tuple[RunSpec, dict[str, Any]]] = {}

    def get(arm: str) -> tuple[RunSpec, dict[str, Any]]:
        if arm not in known:
            spec = run_spec(arm, steps=4, eval={"final_prompts": 8}, **ARMS[arm])
            folder = make_folder(spec, tmp_path_factory.mktemp("whole"))
            assert main([str(folder)]) == 0
            known[arm] = spec, numbers_of(folder)
        return known[arm]

    return get


@pytest.fixture
def save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(harness.run, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.run, "SAVE_SHARE", 1e9)


def kill_at(
    monkeypatch: pytest.MonkeyPatch, step: int, *, torn: bool = False, signal_number: int | None = None
) -> None:
    """Stops the process when it writes the row of a step: before it, in the middle of it, or by a signal after it."""
    write = RunWriter.row

    def hook(self: RunWriter, row: Any) -> None:
        if row["step"] != step:
            return write(self, row)
        if signal_number is not None:
            write(self, row)
            return os.kill(os.getpid(), signal_number)
        if torn:
            with (self.folder / STEPS).open("a") as file:
                file.write('{"schema_version":1,"step":')
        raise Killed

    monkeypatch.setattr(RunWriter, "row", hook)


@pytest.mark.parametrize(("arm", "step", "torn"), [
    ("grpo", 4, True), ("ppo", 2, False), ("ppo", 4, True), ("dapo", 3, True), ("gfpo_adaptive", 4, False),
    ("gspo_calibrated", 3, True),
])  # fmt: skip
@pytest.mark.usefixtures("save_often")
def test_killed_between_checkpoints(
    arm: str, step: int, torn: bool, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, expected = whole(arm)
    folder = make_folder(spec, tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, step, torn=torn)
        with pytest.raises(Killed):
            main([str(folder)])
    assert [int(p.name) for p in checkpoint.steps(folder / "checkpoints")][-1:] == [step - 1]
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected
    result = read_run(folder).result
    assert result is not None
    assert result.resumes == 1


def test_killed_before_the_first_checkpoint(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, expected = whole("gspo_calibrated")
    folder = make_folder(spec, tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            main([str(folder)])
    assert checkpoint.steps(folder / "checkpoints") == []
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_step(number: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the second interruption is that of a run which was continued."""
    spec, expected = whole("grpo")
    folder = make_folder(spec, tmp_path)
    for step in (2, 3):
        with monkeypatch.context() as patch:
            kill_at(patch, step, signal_number=number)
            assert main([str(folder)]) == INTERRUPTED
        assert [row["step"] for row in read_lines(folder / STEPS)][-1] == step
        assert int(checkpoint.steps(folder / "checkpoints")[-1].name) == step
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected
    result = read_run(folder).result
    assert result is not None
    assert result.resumes == 2


@pytest.mark.parametrize("which", [1, 2, 4])
def test_killed_in_an_evaluation(which: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first, at one on the way, at the last; with half of its line written."""
    spec, expected = whole("grpo")
    folder = make_folder(spec, tmp_path)
    write, count = RunWriter.evaluation, [0]

    def hook(self: RunWriter, record: Any, samples: Any) -> None:
        if count[0] == which:
            with (self.folder / EVALS).open("a") as file:
                file.write(record.model_dump_json()[:100])
            raise Killed
        count[0] += 1
        write(self, record, samples)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "evaluation", hook)
        with pytest.raises(Killed):
            main([str(folder)])
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected


@pytest.mark.usefixtures("save_often")
def test_killed_while_saving(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a checkpoint is no checkpoint."""
    spec, expected = whole("ppo")
    folder = make_folder(spec, tmp_path)
    write, count = checkpoint.save_file, [0]

    def hook(tensors: Any, path: Path) -> None:
        count[0] += 1
        if count[0] == 8:  # three files each: the critic of the third checkpoint
            path.write_bytes(b"half")
            raise Killed
        write(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", hook)
        with pytest.raises(Killed):
            main([str(folder)])
    assert [int(p.name) for p in checkpoint.steps(folder / "checkpoints")] == [1, 2]
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected
    assert not [p for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")]


def test_sigkill_of_a_real_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint here, continue in another process, kill that one, finish here."""
    spec = run_spec("dapo", steps=8, eval={"final_prompts": 8})
    whole, folder = make_folder(spec, tmp_path / "whole"), make_folder(spec, tmp_path / "killed")
    assert main([str(whole)]) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 2, signal_number=signal.SIGTERM)
        assert main([str(folder)]) == INTERRUPTED
    with subprocess.Popen(
        [sys.executable, "-m", "harness.run", str(folder)], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while len([*read_lines(folder / STEPS)]) < 4 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    assert len([*read_lines(folder / STEPS)]) >= 4
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == numbers_of(whole)
