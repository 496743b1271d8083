"""Collapses of real runs: recorded, told apart, resumed, and acted upon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness.run
from harness.core.results import EVENTS, RESULT, SAMPLES, STEPS, read_lines, read_run
from harness.core.spec import RunSpec
from harness.monitor.replay import replay_run
from harness.monitor.watch import Monitor
from harness.records import step_row
from harness.run import execute
from harness.train import checkpoint
from harness.train.loop import train
from harness.watching import Watching
from tests.fakes.small_runs import numbers_of, run_spec

UNCLIPPED = {"surrogate.low": 1e9, "surrogate.high": 1e9, "updates.epochs": 4}
HELD_OUT = {"points": 4, "prompts": 128, "final_prompts": 256}


def spec_of(steps: int, **changes: Any) -> RunSpec:
    recipe = {"prompts_per_step": 8, **changes.pop("recipe", {})}
    return run_spec(steps=steps, recipe=recipe, **{"eval": HELD_OUT, **changes})


def told(folder: Path) -> list[dict[str, Any]]:
    """The events without the checkpoint, which depends on the clock."""
    return [{k: v for k, v in e.items() if k != "checkpoint_last_healthy"} for e in read_lines(folder / EVENTS)]


@pytest.fixture(scope="module")
def declining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stale epochs without a clip: declines from its first steps, as in the measurements of the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "declining"
    assert execute(spec_of(24, overrides=UNCLIPPED), folder) is not None
    return folder


def test_a_run_that_declines_from_its_first_steps_has_collapsed(declining: Path) -> None:
    run = read_run(declining)
    assert run.result is not None
    assert run.result.status == "collapsed"
    assert run.result.final_score is not None
    assert run.result.base_score is not None
    assert run.result.final_score < run.result.base_score / 2
    below = next(e for e in run.events if e.type == "below_base")
    assert below.severity == "COLLAPSE"
    assert not [e for e in run.events if e.type == "reward_collapse"]  # it never rose


def test_its_offending_responses_and_batches_are_kept(declining: Path) -> None:
    run = read_run(declining)
    shown = {s.step for s in run.samples if s.split == "train"}
    for event in run.events:
        if event.severity != "WARN":
            assert set(event.sample_steps) <= shown
        assert (declining / "rollouts" / f"{event.confirm_step:08d}.safetensors").exists()
    first = run.events[0].sample_steps[0]
    [*worst] = [s for s in run.samples if s.step == first and s.split == "train"]
    assert worst[-1].reward == 0.0


def test_a_replay_of_the_folder_gives_the_same_events(declining: Path) -> None:
    run = read_run(declining)
    again = replay_run(run, Monitor(siblings=8, reward_low=0.0))
    written = [e.model_dump(exclude={"checkpoint_last_healthy"}) for e in run.events]
    assert [e.model_dump(exclude={"checkpoint_last_healthy"}) for e in again.events] == written


def test_a_killed_run_continues_to_the_same_events(declining: Path, tmp_path: Path) -> None:
    """Rows, evaluations and events after the checkpoint are forgotten and made again."""
    spec = RunSpec.model_validate_json((declining / "spec.json").read_text())
    folder = tmp_path / "run"
    killed_at(spec, folder, rows=13)
    assert execute(spec, folder) is not None
    assert told(folder) == told(declining)
    assert numbers_of(folder)["result"] == numbers_of(declining)["result"]
    assert numbers_of(folder)["samples"] == numbers_of(declining)["samples"]


def killed_at(spec: RunSpec, folder: Path, rows: int) -> None:
    """A run whose power fails while it writes row `rows`, with a checkpoint some steps before that."""
    from harness.core.runwriter import RunWriter
    from harness.run import _Run

    class PowerFailure(BaseException):
        """Nothing of ours catches it."""

    class Failing(RunWriter):
        def row(self, row: Any) -> None:
            super().row(row)
            if row["step"] == rows:
                raise PowerFailure

    writer = Failing(folder, spec)
    run = _Run(spec, writer, [])
    step = run.watching.step

    def saving(row: Any, happened: Any) -> None:
        step(row, happened)
        if row["step"] == rows - 3:
            run._save()

    run.watching.step = saving  # type: ignore[method-assign]
    with pytest.raises(PowerFailure):
        run.go()
    writer.close()
    assert int(checkpoint.steps(folder / "checkpoints")[-1].name) == rows - 3


def test_a_healthy_run_writes_an_empty_file_of_events(tmp_path: Path) -> None:
    result = execute(spec_of(3), tmp_path / "run")
    assert result is not None
    assert result.status == "completed"
    assert (tmp_path / "run" / EVENTS).read_text() == ""


INF = [{"at": 0.5, "overrides": {"penalties.fault_inf": {}}}]


@pytest.mark.parametrize(("policy", "steps"), [("stop_on_fatal", 4), ("stop", 4), ("record", 6)])
def test_an_infinity_ends_the_run_unless_it_is_only_recorded(tmp_path: Path, policy: str, steps: int) -> None:
    spec = spec_of(6, schedule=INF, monitor={"on_collapse": policy}, recipe={"prompts_per_step": 4})
    result = execute(spec, tmp_path / "run")
    assert result is not None
    assert (result.status, result.steps) == ("collapsed", steps)
    assert result.final_score is not None  # scored as it is
    [event] = read_run(tmp_path / "run").events
    assert (event.type, event.severity, event.onset_step, event.confirm_step) == ("numeric", "FATAL", 4, 4)
    assert any("fault_inf" in line for line in result.deviations)


def test_a_run_that_was_stopped_and_killed_before_its_result_does_not_train_on(tmp_path: Path) -> None:
    spec = spec_of(6, schedule=INF, recipe={"prompts_per_step": 4})
    first = execute(spec, tmp_path / "run")
    before = numbers_of(tmp_path / "run")
    (tmp_path / "run" / RESULT).unlink()
    again = execute(spec, tmp_path / "run")
    assert first is not None
    assert again is not None
    assert (again.status, again.steps, again.resumes) == ("collapsed", 4, 1)
    assert numbers_of(tmp_path / "run")["steps"] == before["steps"]
    assert numbers_of(tmp_path / "run")["evals"] == before["evals"]


def test_stopping_at_a_collapse(declining: Path, tmp_path: Path) -> None:
    spec = spec_of(24, overrides=UNCLIPPED, monitor={"on_collapse": "stop"})
    result = execute(spec, tmp_path / "run")
    assert result is not None
    first = min(e["collapse_step"] or e["confirm_step"] for e in told(declining) if e["severity"] == "COLLAPSE")
    assert (result.status, result.steps) == ("collapsed", first)


def test_a_learning_rate_of_nothing_is_no_learning(tmp_path: Path) -> None:
    """Its updates do nothing, which is no fault of the set-up where the learning rate says so."""
    spec = spec_of(12, recipe={"lr": 0.0, "prompts_per_step": 4})
    result = execute(spec, tmp_path / "run")
    assert result is not None
    assert result.status == "no_learning"
    assert not [e for e in told(tmp_path / "run") if e["type"] == "noop"]


def test_noise_in_the_reported_log_probs_is_a_mismatch_and_changes_nothing_else(tmp_path: Path) -> None:
    noisy = [{"at": 0.4, "overrides": {"logp_noise.of": "behaviour", "logp_noise.sd": 0.5}}]
    size = {"recipe": {"prompts_per_step": 4}}
    execute(spec_of(10, schedule=noisy, **size), tmp_path / "noisy")
    execute(spec_of(10, **size), tmp_path / "plain")
    [event] = told(tmp_path / "noisy")
    assert (event["type"], event["onset_step"]) == ("mismatch_blowup", 5)
    plain, rows = ([*read_lines(tmp_path / name / STEPS)] for name in ("plain", "noisy"))
    for key in ("reward/mean", "grad/norm_pre/last", "sampled_tokens_cum"):
        assert [r[key] for r in rows] == [r[key] for r in plain]


def test_a_constant_reward_is_a_dead_signal(tmp_path: Path) -> None:
    constant = [{"at": 0.3, "overrides": {"rewards.fault_constant": {}}}]
    execute(spec_of(10, schedule=constant, recipe={"prompts_per_step": 4}), tmp_path / "run")
    [event] = told(tmp_path / "run")
    assert (event["type"], event["severity"], event["onset_step"]) == ("dead_signal", "DEGRADED", 4)
    assert {s["step"] for s in read_lines(tmp_path / "run" / SAMPLES)} >= {4}
    assert json.loads((tmp_path / "run" / RESULT).read_text())["status"] in ("completed", "no_learning")


def test_monitoring_costs_little_beside_the_step_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics and detectors against generation and updates, in CPU time, which other processes do not disturb."""
    spent = {"training": 0.0, "monitoring": 0.0}

    def timed(function: Any, kind: str) -> Any:
        def call(*given: Any) -> Any:
            start = time.process_time()
            try:
                return function(*given)
            finally:
                spent[kind] += time.process_time() - start

        return call

    def training(*given: Any) -> Iterator[Any]:
        steps = train(*given)
        following = timed(lambda: next(steps, None), "training")
        while (outcome := following()) is not None:
            yield outcome

    monkeypatch.setattr(harness.run, "train", training)
    monkeypatch.setattr(harness.run, "step_row", timed(step_row, "monitoring"))
    monkeypatch.setattr(Watching, "step", timed(Watching.step, "monitoring"))
    execute(spec_of(8, recipe={"prompts_per_step": 32}, eval={"points": 0, "final_prompts": 4}), tmp_path / "run")
    assert spent["training"] > 0
    assert spent["monitoring"] < 0.15 * spent["training"], spent
