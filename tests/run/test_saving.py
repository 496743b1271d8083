"""Which checkpoints a run leaves, and how a run begins from another one's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import harness.saving
import harness.watching
from harness.core.checkpoints import find, listed
from harness.core.collapse import best_step, declared
from harness.core.errors import UsageError
from harness.core.results import CHECKPOINTS, SAMPLES, EventRecord, read_lines, read_run
from harness.monitor.watch import Monitor, Seen, update
from harness.run import execute, main
from tests.fakes.small_runs import make_folder, numbers_of, run_spec
from tests.run.test_interruption import Killed, kill_at

RETENTION = {"every": 2, "margin": 2, "newest": 1}


def steps_of(folder: Path) -> list[int]:
    return [int(p.name) for p in listed(folder / CHECKPOINTS)]


def collapse_at(monkeypatch: pytest.MonkeyPatch, onset: int, confirm: int) -> None:
    """A detector that confirms a collapse at the row of a step."""

    def hook(state: Monitor, row: Any, *args: Any, **options: Any) -> Seen:
        seen = update(state, row, *args, **options)
        if row is None or row["step"] != confirm:
            return seen
        event = EventRecord(
            type="reward_collapse", severity="COLLAPSE", onset_step=onset, confirm_step=confirm, rule_id="by hand",
            metrics_window={"step": []},
        )  # fmt: skip
        events = (*seen.state.events, event)
        return replace(seen, state=seen.state.model_copy(update={"events": events}), events=(*seen.events, event))

    monkeypatch.setattr(harness.watching, "update", hook)


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps whose collapse began at step 6 and was confirmed at step 7."""
    folder = make_folder(run_spec(steps=10, checkpoints=RETENTION), tmp_path_factory.mktemp("collapsed"))
    with pytest.MonkeyPatch.context() as patch:
        collapse_at(patch, 6, 7)
        assert main([str(folder)]) == 0
    return folder


def test_a_healthy_run_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    execute(run_spec(steps=10, checkpoints=RETENTION), tmp_path / "few")
    best = best_step(read_run(tmp_path / "few").evals)
    assert best is not None
    assert steps_of(tmp_path / "few") == sorted({best, 10})
    execute(run_spec(steps=10, checkpoints={**RETENTION, "ladder": "always"}), tmp_path / "all")
    assert steps_of(tmp_path / "all") == sorted({best, 0, 2, 4, 6, 8, 10})
    assert numbers_of(tmp_path / "few") == numbers_of(tmp_path / "all"), "what is kept changes no number"


def test_a_run_that_collapsed_keeps_what_recovery_starts_from(collapsed: Path) -> None:
    best = best_step(read_run(collapsed).evals)
    assert {0, 2, 4, 6, 7, 8, 10} <= {*steps_of(collapsed)} <= {0, 2, 4, 6, 7, 8, 10, best}
    names = {name: int(find(collapsed, name, margin=2).name) for name in ("last_healthy", "half", "collapsed", "last")}
    assert names == {"last_healthy": 4, "half": 2, "collapsed": 7, "last": 10}
    assert int(find(collapsed, "best").name) == best
    assert int(find(collapsed, "8").name) == 8
    assert int(find(collapsed, "last_healthy", episode=declared(5), margin=2).name) == 2


def test_an_interrupted_run_keeps_the_same(collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the event, and again after it."""
    folder = make_folder(read_run(collapsed).spec, tmp_path)
    for step in (6, 9):
        with monkeypatch.context() as patch:
            collapse_at(patch, 6, 7)
            kill_at(patch, step)
            with pytest.raises(Killed):
                main([str(folder)])
    with monkeypatch.context() as patch:
        collapse_at(patch, 6, 7)
        assert main([str(folder)]) == 0
    assert steps_of(folder) == steps_of(collapsed)
    assert numbers_of(folder) == numbers_of(collapsed)


def test_no_ladder_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 1e9)
    spec = run_spec(steps=5, checkpoints={"every": 0, "best": False})
    folder = make_folder(spec, tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            main([str(folder)])
    assert steps_of(folder) == []
    assert main([str(folder)]) == 0
    assert steps_of(folder) == [5]


def test_the_clock_asks_for_checkpoints_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.saving, "SAVE_SHARE", 1e9)
    folder = make_folder(run_spec(steps=5, checkpoints={"every": 0, "best": False}), tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            main([str(folder)])
    assert steps_of(folder) == [2, 3]


def test_a_run_begins_from_a_named_checkpoint(collapsed: Path, tmp_path: Path) -> None:
    start = {"run": str(collapsed), "checkpoint": "collapsed"}
    execute(run_spec(steps=9, seed=4, model={"params": {"coldstart": 0}}, start=start), tmp_path / "run")
    assert [row["step"] for row in read_run(tmp_path / "run").steps] == [8, 9]
    assert 7 in steps_of(tmp_path / "run"), "its own first checkpoint: the donor may go"


@pytest.mark.parametrize(
    ("which", "expected"),
    [("last_healthy", "no collapse in events.jsonl"), ("3", r"steps \[.*10\]"), ("bset", "`best`")],
)
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, which: str, expected: str) -> None:
    execute(run_spec(steps=2, checkpoints=RETENTION), tmp_path / "donor")
    with pytest.raises(UsageError, match=expected.replace("10", "2")):
        execute(run_spec(start={"run": str(tmp_path / "donor"), "checkpoint": which}), tmp_path / "run")


def first_prompts(folder: Path, step: int) -> list[str]:
    return [s["prompt_id"] for s in read_lines(folder / SAMPLES) if s["split"] == "train" and s["step"] == step]


def test_other_prompts_of_the_train_split(tmp_path: Path) -> None:
    """Prompts of another seed from a later one on: those which that seed's own run sees at that place."""
    execute(run_spec(steps=1, seed=3), tmp_path / "donor")
    execute(run_spec(steps=5, seed=3, eval={"points": 5}), tmp_path / "seen")
    start = {"run": str(tmp_path / "donor"), "reset": ["budget"], "prompts": {"seed": 3, "first": 16}}
    execute(run_spec(steps=1, seed=5, start=start), tmp_path / "run")
    assert first_prompts(tmp_path / "run", 1) == first_prompts(tmp_path / "seen", 5) != []
    start["prompts"] = {"seed": 3, "first": 0}
    execute(run_spec(steps=1, seed=5, start=start), tmp_path / "again")
    assert first_prompts(tmp_path / "again", 1) == first_prompts(tmp_path / "donor", 1)
    plain = run_spec(steps=1, seed=5, start={**start, "prompts": None})
    assert plain.hash != run_spec(steps=1, seed=5, start=start).hash


def test_adaptive_state_and_calibration_of_the_donor(tmp_path: Path) -> None:
    """A measured clip range stays in force in a continuation; what adapts can be reset."""
    donor = run_spec("gspo_calibrated", steps=2)
    execute(donor, tmp_path / "donor")
    start: dict[str, Any] = {"run": str(tmp_path / "donor")}
    execute(run_spec("gspo_calibrated", steps=3, seed=5, start=start), tmp_path / "on")
    execute(run_spec("gspo_calibrated", steps=1, seed=5, start={**start, "reset": ["budget"]}), tmp_path / "anew")
    ranges = []
    for name in ("donor", "on", "anew"):
        result = read_run(tmp_path / name).result
        assert result is not None
        ranges.append(result.calibration["sd_log_s"])
    assert ranges[0] == ranges[1] != ranges[2]

    adaptive = run_spec("gfpo_adaptive", steps=2, overrides={"selection.warmup_prompts": 2})
    execute(adaptive, tmp_path / "adaptive")
    state = {"run": str(tmp_path / "adaptive")}
    for reset, lengths in (((), 3), (("adaptive",), 1)):
        spec = adaptive.model_copy(update={"budget": adaptive.budget.model_copy(update={"steps": 3})})
        spec = spec.model_validate({**spec.model_dump(), "start": {**state, "reset": reset}})
        execute(spec, tmp_path / f"history-{lengths}")
        saved = json.loads((listed(tmp_path / f"history-{lengths}" / CHECKPOINTS)[-1] / "state.json").read_text())
        assert len(saved["progress"]["history"]) == lengths * adaptive.recipe.prompts_per_step


def test_a_start_counts_by_the_run_and_not_by_its_place() -> None:
    one, two = (run_spec(start={"run": run}) for run in ("results/a/runs/grpo-s0-12345678", "b/grpo-s0-12345678/"))
    other = run_spec(start={"run": "results/a/runs/grpo-s1-12345678"})
    assert one.hash == two.hash != other.hash
