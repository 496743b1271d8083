"""Progress of a study: events stand in the line of their run, and the last line says how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.results import EVENTS, RESULT, RUNS, EventRecord, read_study, to_json
from harness.study.compare import PlannedRun
from harness.study.live import LiveView, ending, events_of, line_of
from tests.fakes.run_folders import write_fake_study


def planned(tmp_path: Path) -> dict[str, PlannedRun]:
    """A healthy run, a collapsed one and one that failed."""
    write_fake_study(tmp_path, arms=("PPO", "GRPO", "DAPO"), seeds=(0,), collapsed=[("GRPO", 0)], failed=[("DAPO", 0)])
    return {r.spec.arm: PlannedRun(spec=r.spec, folder=r.path, done=False) for r in read_study(tmp_path).runs}


def event(severity: str, onset: int, kind: str, clear: int | None = None) -> EventRecord:
    return EventRecord.model_validate(
        {"type": kind, "severity": severity, "onset_step": onset, "confirm_step": onset + 5, "clear_step": clear,
         "rule_id": kind}
    )  # fmt: skip


def test_a_line_shows_active_events_the_worst_first(tmp_path: Path) -> None:
    run = planned(tmp_path)["PPO"]
    assert line_of(run).events == ""
    events = [
        event("DEGRADED", 3, "kl_blowup"), event("WARN", 1, "grad_spike"), event("DEGRADED", 2, "dead_signal", clear=9),
        event("COLLAPSE", 20, "reward_collapse"), event("DEGRADED", 9, "length_explosion"),
    ]  # fmt: skip
    (run.folder / EVENTS).write_text("".join(to_json(e) + "\n" for e in events))
    assert line_of(run).events == "reward_collapse 20, kl_blowup 3, +1"


def test_a_last_line_says_how_a_run_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned(tmp_path)
    assert ending(runs["PPO"].folder) == ""
    assert ending(runs["GRPO"].folder) == ": collapsed (reward_collapse 25)"
    assert ending(runs["DAPO"].folder) == ": infra_failed"
    with LiveView(list(runs.values()), 1) as view:
        view({run.spec.run_id: "done" if arm != "DAPO" else "failed" for arm, run in runs.items()})
    err = capsys.readouterr().err
    assert "done   GRPO, seed 0: collapsed (reward_collapse 25)" in err
    assert "done   PPO, seed 0\n" in err


def test_what_cannot_be_read_is_no_event(tmp_path: Path) -> None:
    run = planned(tmp_path)["GRPO"]
    (run.folder / EVENTS).write_text('{"torn')
    assert events_of(run.folder) == ""
    (run.folder / EVENTS).write_text('{"torn\n{"type": "x"}\n{"type": "y"}\n')
    assert events_of(run.folder) == ""
    (run.folder / RESULT).write_text("{")
    assert ending(run.folder) == ""
    assert ending(tmp_path / RUNS / "nothing") == ""
