"""A small study from the command line's options to report and MLflow, and the executor under it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.backends.executors.local import LOG, LocalExecutor
from harness.cli import app, guarded
from harness.core.ports import RunHandle, RunState
from harness.core.results import RESULT, RUNS, SPEC, STEPS, read_lines, read_study
from harness.study.compare import PlannedRun, last_words, plan_runs, run_study
from tests.fakes.small_runs import numbers_of, run_spec

CHOICES = [
    "compare", "-a", "grpo,ppo", "--controls", "none", "--seeds", "1", "--steps", "3",
    "-s", "recipe.prompts_per_step=4", "-s", "eval.prompts=8", "-s", "eval.final_prompts=16", "-s", "eval.points=2",
]  # fmt: skip


def command(results: Path, *more: str) -> int:
    """The command line, in this process; runs are processes of their own."""
    codes: list[int] = []

    def call() -> None:
        codes.append(int(app([*CHOICES, "--results", str(results), *more], standalone_mode=False) or 0))

    return guarded(call) or codes[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two arms, its runs side by side."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert command(folder, "--parallel", "2") == 0
    return folder


def the_study(results: Path) -> Path:
    [study] = [p for p in results.iterdir() if (p / "study.yaml").exists()]
    return study


def run_of(results: Path, arm: str) -> Path:
    [run] = (the_study(results) / RUNS).glob(f"{arm}-*")
    return run


def test_a_study_leaves_runs_report_and_mirror(results: Path) -> None:
    found = read_study(the_study(results))
    assert [(r.spec.arm, r.state, len(r.steps)) for r in found.runs] == [
        ("GRPO", "finished", 3),
        ("PPO", "finished", 3),
    ]
    assert found.missing == ()
    names = {p.name for p in (the_study(results) / "report").iterdir()}
    assert {"report.json", "report.md", "report.html"} <= names
    assert "GRPO" in (the_study(results) / "report" / "report.md").read_text()
    with sqlite3.connect(results / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status != 'FINISHED'").fetchone() == (0,)
        assert database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone() == (2,)
        assert database.execute("select count(*) from experiments where name = ?", [found.spec.name]).fetchone() == (1,)


def test_repeating_the_command_says_that_all_is_done(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (the_study(results) / RUNS).rglob("*") if p.is_file()}
    assert command(results, "--no-mlflow", "--json") == 0
    out, err = capsys.readouterr()
    assert "all 2 runs are done" in err
    assert json.loads(out)["failed"] == {}
    assert {p: p.stat().st_mtime_ns for p in (the_study(results) / RUNS).rglob("*") if p.is_file()} == before


@pytest.fixture(scope="module")
def one_by_one(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[PlannedRun]]:
    """PPO again in another folder, one run at a time, behind a run whose task file has vanished."""
    study = tmp_path_factory.mktemp("other")
    spec = read_study(the_study(results)).spec
    gone = run_spec("gspo", task={"name": str(study / "gone.jsonl")})
    planned = [PlannedRun(spec=gone, folder=study / RUNS / gone.run_id, done=False), *plan_runs(spec, study)[1:]]
    most = [0]

    def watch(states: Any) -> None:
        most[0] = max(most[0], sum(s == "running" for s in states.values()))

    outcome = run_study(planned, study, LocalExecutor(1), None, watch)
    assert most[0] == 1
    return study, outcome, planned


def test_the_number_of_parallel_runs_changes_nothing(results: Path, one_by_one: Any) -> None:
    study, _, planned = one_by_one
    for run in planned[1:]:
        assert numbers_of(study / RUNS / run.spec.run_id) == numbers_of(the_study(results) / RUNS / run.spec.run_id)


def test_one_failing_run_does_not_stop_the_others(one_by_one: Any) -> None:
    _, outcome, planned = one_by_one
    assert not outcome.interrupted
    assert outcome.finished == [r.spec.run_id for r in planned[1:]]
    [(run_id, words)] = outcome.failed.items()
    assert run_id == planned[0].spec.run_id
    assert "gone.jsonl" in words
    assert "Traceback" not in words


def test_a_run_here_equals_a_run_in_a_process_of_its_own(results: Path, tmp_path: Path) -> None:
    from harness.core.spec import RunSpec
    from harness.run import execute

    theirs = run_of(results, "grpo")
    execute(RunSpec.model_validate_json((theirs / SPEC).read_text()), tmp_path / "run")
    assert numbers_of(tmp_path / "run") == numbers_of(theirs)


def test_interrupting_a_study_leaves_it_resumable(tmp_path: Path) -> None:
    """Cancelled where it waits, stopped after its step where it runs."""
    specs = [run_spec("grpo", steps=400), run_spec("gspo", steps=400)]
    planned = [PlannedRun(spec=s, folder=tmp_path / s.run_id, done=False) for s in specs]
    executor = LocalExecutor(1)

    def watch(states: Any) -> None:
        assert [*states.values()] == ["running", "waiting"], last_words(planned[0].folder / LOG)
        if [*read_lines(planned[0].folder / STEPS)]:
            raise KeyboardInterrupt

    outcome = run_study(planned, tmp_path, executor, None, watch)
    assert outcome.interrupted
    assert (outcome.finished, outcome.failed) == ([], {})
    assert [h.folder for h in executor.list()] == [r.folder for r in planned]
    executor.shutdown(60.0)
    assert list(executor.poll().values()) == ["cancelled", "cancelled"]
    assert not (planned[0].folder / RESULT).exists()
    assert not planned[1].folder.exists()
    last = [*read_lines(planned[0].folder / STEPS)][-1]["step"]
    assert max(int(p.name) for p in (planned[0].folder / "checkpoints").iterdir()) == last


class ScriptedExecutor:
    """Tells states by script; runs nothing."""

    def __init__(self, *states: RunState) -> None:
        self._states = states
        self._handles: list[RunHandle] = []

    def submit(self, spec: Any, folder: Path) -> RunHandle:
        self._handles.append(RunHandle(run_id=spec.run_id, folder=folder))
        return self._handles[-1]

    def poll(self) -> Mapping[str, RunState]:
        return {h.run_id: s for h, s in zip(self._handles, self._states, strict=True)}

    def cancel(self, run_id: str) -> None:
        raise AssertionError(run_id)

    def list(self) -> list[RunHandle]:
        return self._handles


def test_a_run_that_somebody_else_stopped_is_not_called_done(tmp_path: Path) -> None:
    planned = []
    for seed in (0, 1, 2):
        spec = run_spec(seed=seed)
        folder = tmp_path / spec.run_id
        folder.mkdir()
        (folder / LOG).write_text(f"last words of seed {seed}\n")
        planned.append(PlannedRun(spec=spec, folder=folder, done=False))
    outcome = run_study(planned, tmp_path, ScriptedExecutor("done", "cancelled", "failed"), None, lambda states: None)
    ids = [r.spec.run_id for r in planned]
    assert outcome.finished == ids[:1]
    assert outcome.failed == {ids[1]: "last words of seed 1", ids[2]: "last words of seed 2"}


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").write_text("not a folder")
    assert command(tmp_path / "results") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_run_folder_keeps_what_the_process_said(results: Path) -> None:
    assert (run_of(results, "grpo") / LOG).read_text() == ""
