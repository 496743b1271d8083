"""What the runs of an ablation may cost together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.core.results import STEPS
from harness.study.compare import PlannedRun
from harness.study.spending import Limits, Purse
from tests.fakes.small_runs import run_spec


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Three, each of which will have sampled 100 tokens in 7 seconds."""
    planned = [PlannedRun(spec=run_spec(seed=s), folder=tmp_path / str(s), done=False) for s in range(3)]
    for run in planned:
        run.folder.mkdir()
        (run.folder / STEPS).write_text(json.dumps({"step": 1, "sampled_tokens_cum": 100, "wallclock_s": 7.0}) + "\n")
    return planned


def states_of(runs: list[PlannedRun], done: int) -> dict[str, RunState]:
    return {r.spec.run_id: "done" if i < done else "running" for i, r in enumerate(runs)}


@pytest.mark.parametrize("limits", [Limits(tokens=300), Limits(seconds=20.0), Limits(tokens=10**9, seconds=1.0)])
def test_a_spent_budget_interrupts(runs: list[PlannedRun], limits: Limits, capsys: pytest.CaptureFixture[str]) -> None:
    purse = Purse(limits, runs)
    with pytest.raises(KeyboardInterrupt):
        purse.look(states_of(runs, 1))
    said = capsys.readouterr().err
    assert "is spent" in said
    assert "1 of 3 runs done" in said


@pytest.mark.parametrize("limits", [Limits(), Limits(tokens=301), Limits(seconds=22.0)])
def test_what_is_left_is_spent(runs: list[PlannedRun], limits: Limits) -> None:
    purse = Purse(limits, runs)
    for done in range(4):
        purse.look(states_of(runs, done))


def test_a_finished_study_is_not_interrupted(runs: list[PlannedRun]) -> None:
    Purse(Limits(tokens=1), runs).look(states_of(runs, 3))


@pytest.mark.parametrize("limits", [Limits(tokens=0), Limits(seconds=-1.0)])
def test_a_limit_that_allows_nothing_is_refused(limits: Limits) -> None:
    with pytest.raises(UsageError, match="nothing could be run"):
        limits.check()
