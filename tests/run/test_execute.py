"""Runs from spec to result: readable folders, the same numbers anywhere, nothing repeated, failures recorded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.core import runwriter, schema
from harness.core.errors import InfrastructureError, UsageError
from harness.core.results import EVALS, RESULT, SAMPLES, SPEC, STEPS, read_lines, read_run
from harness.core.spec import RunSpec
from harness.run import execute, main
from tests.fakes.limits import file_size_limit
from tests.fakes.small_runs import make_folder, numbers_of, run_spec


def validate_run(folder: Path) -> None:
    """Every file of a run folder against its published schema."""
    for name, document in schema.schemas().items():
        validator = jsonschema.Draft202012Validator(document)
        for file in folder.glob(f"{name.split('.')[0]}.json*"):
            rows = [json.loads(file.read_text())] if file.suffix == ".json" else [*read_lines(file)]
            for row in rows:
                validator.validate(row)


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of GRPO."""
    folder = make_folder(run_spec(steps=6), tmp_path_factory.mktemp("runs"))
    assert main([str(folder)]) == 0
    return folder


def test_a_run_folder_is_readable_and_complete(grpo: Path) -> None:
    validate_run(grpo)
    run = read_run(grpo)
    assert run.state == "finished"
    assert run.result is not None
    assert run.result.status == "completed"
    assert [row["step"] for row in run.steps] == [1, 2, 3, 4, 5, 6]
    assert [(e.split, e.step) for e in run.evals] == [
        ("test", 0), ("validation", 0), ("validation", 3), ("validation", 6), ("test", 6),
    ]  # fmt: skip
    assert run.result.base_score == run.evals[0].score
    assert run.result.final_score == run.evals[-1].score
    assert run.result.best_validation == max(e.score for e in run.evals if e.split == "validation")
    assert run.result.sampled_tokens == run.steps[-1]["sampled_tokens_cum"]
    assert run.result.trained_tokens == run.steps[-1]["trained_tokens_cum"]
    assert {s.split for s in run.samples} == {"train", "validation"}
    assert [p.name for p in sorted((grpo / "rollouts").iterdir())] == [
        "00000001.safetensors", "00000003.safetensors", "00000006.safetensors",
    ]  # fmt: skip
    assert not [p.name for p in grpo.rglob("*") if p.name.endswith(".tmp")]
    assert (run.result.peak_memory_mib or 0) > 0


def test_the_same_spec_gives_the_same_numbers_elsewhere(grpo: Path, tmp_path: Path) -> None:
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    assert execute(spec, tmp_path / "elsewhere") is not None
    assert numbers_of(tmp_path / "elsewhere") == numbers_of(grpo)


def test_another_seed_or_learning_rate_gives_others(grpo: Path, tmp_path: Path) -> None:
    rows = numbers_of(grpo)["steps"]
    for steps, spec in ((1, run_spec(steps=1, seed=1)), (2, run_spec(steps=2, recipe={"lr": 1e-3}))):
        execute(spec, tmp_path / str(steps))
        other = numbers_of(tmp_path / str(steps))["steps"]
        keys = ("len/mean", "sampled_tokens_cum", "grad/norm_pre/last")
        assert [other[-1][k] for k in keys] != [rows[steps - 1][k] for k in keys]


def test_a_finished_run_is_returned_as_it_is(grpo: Path) -> None:
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    before = {p: p.stat().st_mtime_ns for p in grpo.rglob("*") if p.is_file()}
    again = execute(spec, grpo)
    assert again is not None
    assert again.resumes == 0
    assert {p: p.stat().st_mtime_ns for p in grpo.rglob("*") if p.is_file()} == before


def test_a_failed_run_is_recorded_and_tried_again(grpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    folder = make_folder(spec, tmp_path)
    write = runwriter.RunWriter.row

    def out_of_memory(self: runwriter.RunWriter, row: Any) -> None:
        write(self, row)
        if row["step"] == 4:
            raise MemoryError("no more pages")

    monkeypatch.setattr(runwriter.RunWriter, "row", out_of_memory)
    assert main([str(folder)]) == InfrastructureError.exit_code
    failed = read_run(folder).result
    assert failed is not None
    assert (failed.status, failed.steps, failed.final_score) == ("infra_failed", 4, None)
    assert failed.error == "MemoryError: no more pages"
    validate_run(folder)
    monkeypatch.undo()
    assert main([str(folder)]) == 0
    assert numbers_of(folder) == numbers_of(grpo)


@pytest.mark.parametrize("size", [6_000, 30_000, 300_000])
def test_a_full_disk_is_told_and_survived(
    grpo: Path, tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small: an evaluation or a row is torn; larger: the checkpoint does not fit."""
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    folder = make_folder(spec, tmp_path)
    with file_size_limit(size), pytest.raises(InfrastructureError, match=r"cannot (write|append)"):
        execute(spec, folder)
    assert main([str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert numbers_of(folder) == numbers_of(grpo)


def test_a_locked_folder_is_left_alone(grpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    folder = make_folder(spec, tmp_path)
    monkeypatch.setattr(runwriter, "LOCK_WAIT_S", 0.1)
    code = (
        f"import fcntl, sys; f = open({str(folder / '.lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InfrastructureError, match="another process is writing this run"):
            execute(spec, folder)
        assert [p.name for p in sorted(folder.iterdir())] == [".lock", SPEC]
        assert other.stdin is not None
        other.stdin.close()
    assert execute(spec, folder) is not None


def test_who_waited_for_the_lock_does_not_repeat_the_run(
    grpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes while this one waits."""
    spec = RunSpec.model_validate_json((grpo / SPEC).read_text())
    folder = make_folder(spec, tmp_path)
    lock = runwriter._locked

    def wait_for_the_other(path: Path) -> Any:
        (folder / RESULT).write_bytes((grpo / RESULT).read_bytes())
        return lock(path)

    monkeypatch.setattr(runwriter, "_locked", wait_for_the_other)
    assert execute(spec, folder) is not None
    assert not (folder / STEPS).exists()


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    execute(run_spec("base", steps=1), tmp_path / "run")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_base_model_is_scored_and_not_trained(tmp_path: Path) -> None:
    result = execute(run_spec("base"), tmp_path / "run")
    assert result is not None
    assert (result.steps, result.sampled_tokens) == (0, 0)
    assert result.base_score == result.final_score is not None
    validate_run(tmp_path / "run")


def test_another_numerics_version_is_refused(tmp_path: Path) -> None:
    spec = run_spec().model_copy(update={"numerics_version": 99})
    with pytest.raises(UsageError, match="numerics version 99"):
        execute(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_file_that_vanished_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(run_spec(task={"name": str(tmp_path / "gone.jsonl")}), tmp_path)
    assert main([str(folder)]) == 2
    assert "gone.jsonl" in capsys.readouterr().err


def test_start_from_another_run(grpo: Path, tmp_path: Path) -> None:
    """Weights go over; counters too unless the budget is reset; the first score is that of the weights taken over."""
    start = {"run": str(grpo), "checkpoint": "last", "reset": ["budget", "optimizer"]}
    fresh = execute(run_spec(steps=2, start=start, recipe={"lr": 0.0}), tmp_path / "fresh")
    donor = read_run(grpo).result
    assert donor is not None
    assert fresh is not None
    assert fresh.base_score == fresh.final_score == donor.final_score
    assert fresh.steps == 2
    assert any("starts from" in d for d in fresh.deviations)
    longer = execute(run_spec(steps=8, start={**start, "reset": []}), tmp_path / "longer")
    assert longer is not None
    assert longer.steps == 8
    assert longer.base_score == donor.final_score
    rows = [*read_lines(tmp_path / "longer" / STEPS)]
    assert [row["step"] for row in rows] == [7, 8]
    assert rows[0]["sampled_tokens_cum"] > donor.sampled_tokens


def test_continuing_a_run_equals_one_long_run(tmp_path: Path) -> None:
    """`start` without any reset is an exact continuation."""
    execute(run_spec(steps=2), tmp_path / "short")
    execute(run_spec(steps=4, start={"run": str(tmp_path / "short")}), tmp_path / "continued")
    execute(run_spec(steps=4), tmp_path / "whole")
    continued, whole = (numbers_of(tmp_path / name) for name in ("continued", "whole"))
    assert continued["steps"] == whole["steps"][2:]
    assert continued["weights"] == whole["weights"]


@pytest.mark.parametrize("checkpoint", ["7", "first"])
def test_a_start_that_does_not_exist_is_refused(grpo: Path, tmp_path: Path, checkpoint: str) -> None:
    spec = run_spec(start={"run": str(grpo), "checkpoint": checkpoint})
    with pytest.raises(UsageError, match=r"(?s)it has checkpoints of steps \[.*6\].*`last`"):
        execute(spec, tmp_path / "run")


def test_torn_lines_and_late_records_are_repaired(tmp_path: Path) -> None:
    """A cut inside a character, and events, which have no `step`."""
    writer = runwriter.RunWriter(tmp_path / "run", run_spec())
    for step in (1, 2, 3):
        writer.row({"step": step})
    with (tmp_path / "run" / STEPS).open("ab") as file:
        file.write('{"step":4,"text":"né'.encode()[:-1])
    (tmp_path / "run" / "events.jsonl").write_text(
        '{"onset_step":1,"confirm_step":2}\n{"onset_step":2,"confirm_step":3}\n'
    )
    assert [r["step"] for r in read_lines(tmp_path / "run" / STEPS)] == [1, 2, 3]
    writer.rewind(2)
    writer.close()
    assert (tmp_path / "run" / STEPS).read_text() == '{"step":1}\n{"step":2}\n'
    assert [r["confirm_step"] for r in read_lines(tmp_path / "run" / "events.jsonl")] == [2]


def test_a_damaged_line_in_the_middle_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"step":1}\n{"st\n{"step":3}\n')
    with pytest.raises(InfrastructureError, match="line 2 is not JSON"):
        [*read_lines(tmp_path / "x.jsonl")]


def test_result_and_rows_are_strict_json(grpo: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for name in (STEPS, EVALS, SAMPLES):
        for line in (grpo / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    json.loads((grpo / RESULT).read_text(), parse_constant=refuse)
