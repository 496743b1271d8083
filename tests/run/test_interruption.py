"""A run that is interrupted, wherever and however, ends with the numbers of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.saving
from harness.core.results import EVALS, STEPS, read_lines, read_run
from harness.core.runwriter import RunWriter
from harness.core.spec import RunSpec
from harness.run import INTERRUPTED, main
from harness.train import checkpoint
from tests.architecture.source import ROOT
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

ARMS = {
    "grpo": {},
    "ppo": {"overrides": {"advantage.warmup_steps": 2}},
    "dapo": {},
    "gfpo_adaptive": {"overrides": {"selection.warmup_prompts": 2}},
    "gspo_calibrated": {},
    "grpo_replay_r2": {"model": {"name": "tiny-moe"}},
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
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.saving, "SAVE_SHARE", 1e9)


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
    ("gspo_calibrated", 3, True), ("grpo_replay_r2", 3, True),
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


def test_killed_before_the_first_step_was_saved(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, expected = whole("gspo_calibrated")
    folder = make_folder(spec, tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            main([str(folder)])
    assert [int(p.name) for p in checkpoint.steps(folder / "checkpoints")] == [0]
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
        if count[0] == 11:  # three files each: the critic of the fourth checkpoint, that of step 3
            path.write_bytes(b"half")
            raise Killed
        write(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", hook)
        with pytest.raises(Killed):
            main([str(folder)])
    assert [int(p.name) for p in checkpoint.steps(folder / "checkpoints")][-2:] == [1, 2]
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == expected
    assert not [p for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")]


def test_sigkill_at_random_moments() -> None:
    """A few of the kills of `make test-resume`, in processes of their own."""
    command = [sys.executable, "-m", "tests.run.resume_check"]
    options = ["--arms", "ppo,dapo", "--moments", "2", "--steps", "6"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2/2 identical; killed again and again: identical") == 2
