"""What outlives a step: checkpoints, calibration, schedules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.assemble import Assembly, assemble
from harness.core.errors import InfrastructureError, UsageError
from harness.core.resolve import resolve, scheduled
from harness.core.spec import ScheduleEntry
from harness.train import checkpoint
from harness.train.calibrate import calibrate
from harness.train.loop import Progress, StepOutcome, one_step, train
from tests.fakes.limits import file_size_limit
from tests.fakes.small_runs import run_spec


def snapshot(parts: Assembly) -> dict[str, torch.Tensor]:
    found = {f"policy.{k}": v.clone() for k, v in parts.optimizers.policy.tensors().items()}
    if parts.optimizers.critic is not None:
        found |= {f"critic.{k}": v.clone() for k, v in parts.optimizers.critic.tensors().items()}
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def essence(outcome: StepOutcome) -> list[Any]:
    return [replace(outcome.progress, wallclock_s=0.0), *[(t.loss, t.grad_norm, t.penalties) for t in outcome.traces]]


@pytest.mark.parametrize("arm", ["ppo", "gfpo_adaptive"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_is_bit_exact(tmp_path: Path, arm: str, dtype: str) -> None:
    spec = run_spec(arm, backend={"dtype": dtype})
    if arm == "ppo":
        spec = spec.model_copy(update={"overrides": {**spec.overrides, "advantage.warmup_steps": 1}})
    parts = assemble(spec)
    progress = one_step(parts.trainer, one_step(parts.trainer, Progress(), 0.0).progress, 0.25).progress
    torch.manual_seed(123)
    saved = checkpoint.save(tmp_path, progress, parts.optimizers, {"calibration": {"sd_log_s": 0.1}})
    before, draw = snapshot(parts), torch.rand(3)
    other = assemble(spec)
    found, extra = checkpoint.load(saved, other.optimizers)
    assert found == progress
    assert (len(progress.history) > 0) == (arm == "gfpo_adaptive")
    assert extra["calibration"] == {"sd_log_s": 0.1}
    assert same(snapshot(other), before)
    assert torch.equal(torch.rand(3), draw)
    one, two = one_step(parts.trainer, progress, 0.5), one_step(other.trainer, found, 0.5)
    assert essence(one) == essence(two)
    assert same(snapshot(parts), snapshot(other))


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    parts = assemble(run_spec())
    (tmp_path / ".00000009.tmp").mkdir(parents=True)  # of an interruption
    for step in (2, 10):
        checkpoint.save(tmp_path, Progress(step=step), parts.optimizers, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000002", "00000010"]
    (tmp_path / "00000010" / "state.json").unlink()
    assert [int(p.name) for p in checkpoint.steps(tmp_path)] == [2]
    assert checkpoint.steps(tmp_path / "nowhere") == []


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    parts = assemble(run_spec())
    checkpoint.save(tmp_path, Progress(step=1), parts.optimizers, {})
    with file_size_limit(50_000), pytest.raises(InfrastructureError, match="free space, then run the same command"):
        checkpoint.save(tmp_path, Progress(step=2), parts.optimizers, {})
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, Progress(step=1), assemble(run_spec("grpo")).optimizers, {})
    ppo = assemble(run_spec("ppo"))
    with pytest.raises(UsageError, match=r"(?s)critic.safetensors: missing.*reset"):
        checkpoint.load(saved, ppo.optimizers)
    checkpoint.load(saved, ppo.optimizers, critic=False)
    assert ppo.optimizers.critic is not None
    swapped = replace(ppo.optimizers, policy=ppo.optimizers.critic)
    with pytest.raises(UsageError, match="belong to another model"):
        checkpoint.load(saved, swapped, critic=False)


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_calibration_measures_and_restores(warmup: float) -> None:
    """The range is measured at the run's own rate, also where the run begins with a warm-up."""
    parts = assemble(run_spec("gspo_calibrated", recipe={"warmup": warmup}))
    before = snapshot(parts)
    copies = {k: v.clone() for k, v in parts.optimizers.policy.tensors().items()}
    sd, progress = calibrate(parts.trainer, Progress(), lambda: parts.optimizers.policy.load(copies))
    assert 1e-5 < sd < 1.0
    assert same(snapshot(parts), before), "weights and (absent) moments as before"
    assert progress.sampled_tokens > 0
    assert replace(progress, sampled_tokens=0, prompts=0) == Progress()
    again, charged = calibrate(parts.trainer, Progress(), lambda: parts.optimizers.policy.load(copies))
    assert (again, charged) == (sd, progress)
    ready = parts.calibrated({"sd_log_s": sd})
    surrogate = ready.algorithm.surrogate
    assert not surrogate.needs_calibration
    assert surrogate.low == pytest.approx(sd)  # type: ignore[attr-defined]
    assert surrogate.high == pytest.approx(4 / 3 * sd)  # type: ignore[attr-defined]
    assert ready.trainer.algorithm is ready.algorithm


def test_calibration_without_drift_is_refused() -> None:
    parts = assemble(run_spec("gspo_calibrated", overrides={"updates.mini_batches": 1}))
    with pytest.raises(UsageError, match="one update per rollout batch"):
        calibrate(parts.trainer, Progress(), lambda: None)


def test_a_schedule_takes_effect_at_its_fraction() -> None:
    entries = [
        {"at": 0.5, "overrides": {"surrogate.high": 0.9, "recipe.lr": 0.0, "recipe.max_new_tokens": 5}},
        {"at": 0.75, "overrides": {"recipe.temperature": 2.0}},
    ]
    parts = assemble(run_spec(steps=4, schedule=entries))
    outcomes = [*train(parts.trainer, Progress())]
    assert [o.lr for o in outcomes] == [3e-4, 3e-4, 0.0, 0.0]
    lengths = [max(len(t.response_ids) for g in o.gathered.sampled for t in g.trajectories) for o in outcomes]
    assert min(lengths[:2]) > 5 >= max(lengths[2:])
    assert [o.moved is not None and o.moved[0] > 0 for o in outcomes] == [True, True, False, False]
    for o in outcomes:  # the trainer scores at the temperature that sampled
        for trace in o.traces:
            if trace.mask.any():
                gap = (trace.old_logp - trace.behaviour_logp)[trace.mask].abs().max()
                assert float(gap) < 1e-4
    algorithm, recipe = scheduled(parts.algorithm, parts.spec.recipe, parts.spec.schedule, 0.6)
    assert algorithm.surrogate.high == 0.9  # type: ignore[attr-defined]
    assert (recipe.max_new_tokens, recipe.temperature) == (5, 1.0)


def test_prompts_are_refreshed_and_responses_grow_at_their_fraction() -> None:
    """Eight prompts twice, then eight others; a limit of 5 tokens, then of 12."""
    refresh = [{"at": 0.5, "overrides": {"recipe.pool": 1, "recipe.max_new_tokens": 12}}]
    recipe = {"pool_size": 8, "max_new_tokens": 5, "prompts_per_step": 8}
    outcomes = [*train(assemble(run_spec(steps=4, recipe=recipe, schedule=refresh)).trainer, Progress())]
    seen = [{g.prompt.id for g in o.gathered.sampled} for o in outcomes]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert not seen[0] & seen[2]
    assert len(seen[0]) == 8
    longest = [max(t.num_tokens for g in o.gathered.sampled for t in g.trajectories) for o in outcomes]
    assert longest == [5, 5, 12, 12]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"recipe.pool": 1}, "without recipe.pool_size"),
        ({"surrogate.hihg": 0.3}, "did you mean surrogate.high"),
        ({"recipe.lrr": 0.1}, "did you mean lr"),
        ({"recipe.prompts_per_step": 8}, "cannot change during a run"),
        ({"recipe.lr": -1.0}, "greater than or equal to 0"),
        ({"surrogate.high": 0.27}, "changes nothing"),
        ({"penalties.kl": {}}, "networks are provisioned when the run begins"),
        ({"advantage": "gae"}, "needs a critic"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_the_run(overrides: dict[str, Any], expected: str) -> None:
    spec = run_spec(schedule=[{"at": 0.5, "overrides": overrides}])
    with pytest.raises(UsageError, match=expected):
        assemble(spec)


def test_entries_add_up() -> None:
    spec = run_spec()
    entries = tuple(ScheduleEntry(at=a, overrides={"surrogate.high": v}) for a, v in ((0.2, 0.3), (0.6, 0.4)))
    highs = [scheduled(resolve(spec), spec.recipe, entries, f)[0].surrogate for f in (0.0, 0.2, 0.59, 0.6, 1.0)]
    assert [s.high for s in highs] == [0.27, 0.3, 0.3, 0.4, 0.4]  # type: ignore[attr-defined]
