"""Whole steps in other precisions: on the trainer's side, on the sampler's, on both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.saving
from harness.assemble import Assembly, assemble
from harness.core.resolve import deviations, resolve
from harness.core.spec import RunSpec
from harness.gate import Gate, engine_of
from harness.models.rollout_copy import RolloutCopy
from harness.records import step_row
from harness.run import main
from harness.saving import Checkpoints
from harness.train import checkpoint
from harness.train.loop import Progress, StepOutcome, one_step
from tests.fakes.small_runs import make_folder, numbers_of, run_spec, weights_of
from tests.train.test_update_choices import relative

DIVIDING: dict[str, Any] = {
    "overrides": {"old_logp": "rollout", "updates.mini_batches": 2}, "recipe": {"prompts_per_step": 8}
}  # fmt: skip


def spec(backend: dict[str, Any], **changes: Any) -> RunSpec:
    return run_spec("grpo", backend=backend, **changes)


def after_a_step(backend: dict[str, Any], **changes: Any) -> tuple[Assembly, StepOutcome, dict[str, Any]]:
    parts = assemble(spec(backend, **changes))
    outcome = one_step(parts.trainer, Progress(), 0.0)
    return parts, outcome, dict(step_row(outcome, parts))


@pytest.mark.parametrize(
    ("backend", "most"),
    [
        ({}, 1e-5),  # the zero-mismatch arm: one engine, one precision
        ({"dtype": "float16"}, 2e-3),
        ({"dtype": "bfloat16"}, 1e-2),
        ({"engine": {"dtype": "float16"}}, 3e-3),
        ({"engine": {"dtype": "bfloat16"}}, 2e-2),
        ({"engine": {"dtype": "int8"}}, 2e-2),
        ({"dtype": "float16", "engine": {"dtype": "float32"}}, 3e-3),
        ({"dtype": "bfloat16", "engine": {"dtype": "int8"}, "fp32_head": True}, 3e-2),
        ({"dtype": "float16", "update": {"share_prompts": True}}, 2e-3),
        ({"dtype": "bfloat16", "fp32_head": True, "update": {"share_prompts": True}}, 1e-2),
    ],
    ids=str,
)
def test_a_step_trains_and_its_mismatch_is_that_of_the_precision(backend: dict[str, Any], most: float) -> None:
    parts, outcome, row = after_a_step(backend, **DIVIDING)
    assert row["mismatch/abs_dlogp_mean"] < most
    same = "engine" not in backend
    assert same or row["mismatch/abs_dlogp_mean"] > 1e-4
    assert all(math.isfinite(t.grad_norm) and t.grad_norm > 0 for t in outcome.traces)
    assert row["health/skipped_updates"] == 0
    assert engine_of(parts).dtype == backend.get("engine", {}).get("dtype", backend.get("dtype", "float32"))
    trained = backend.get("dtype", "float32")
    assert {p.dtype for p in parts.model.policy.parameters()} == {getattr(torch, trained)}


def test_without_mismatch_every_first_ratio_is_one_though_the_sampler_gave_its_base() -> None:
    _, _, row = after_a_step({}, **DIVIDING)
    assert row["ratio/tok_max/first"] == pytest.approx(1.0, abs=1e-4)
    assert row["ratio/tok_min/first"] == pytest.approx(1.0, abs=1e-4)


def test_the_copy_is_made_anew_after_every_update() -> None:
    parts, _, _ = after_a_step({"engine": {"dtype": "int8"}})
    fresh = RolloutCopy(parts.model.policy, "int8").policy
    sampled: Any = parts.sampler
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), sampled._policy.parameters(), strict=True))


@pytest.mark.parametrize("arm", ["grpo", "ppo"])
def test_an_overflow_repeats_the_step_at_half_the_scale_and_loses_nothing(arm: str) -> None:
    """Policy and critic; the weights move as if the scale had been smaller from the beginning."""
    moved = []
    for scale in (2.0**10, 2.0**40):
        parts = assemble(run_spec(arm, backend={"dtype": "float16"}))
        start = [p.detach().clone() for p in parts.model.policy.parameters()]
        for optimizer in (parts.optimizers.policy, parts.optimizers.critic):
            if optimizer is not None:
                optimizer.scale = scale
        outcome = one_step(parts.trainer, Progress(step=50), 0.0)
        assert [t.nonfinite for t in outcome.traces] == [0] * len(outcome.traces)
        assert parts.optimizers.policy.scale < 2.0**30
        moved.append([p.float() - s.float() for p, s in zip(parts.model.policy.parameters(), start, strict=True)])
    assert relative(*moved) < 0.3  # Adam divides rounding by rounding where a gradient is nearly 0


@pytest.mark.parametrize("rollout", ["bfloat16", "float16", "int8"])
def test_the_self_test_knows_the_tolerance_of_each_precision(rollout: str, tmp_path: Path) -> None:
    for trained in ("float32", "bfloat16", "float16"):
        parts = assemble(spec({"dtype": trained, "engine": {"dtype": rollout}}))
        gate = Gate(parts.spec, tmp_path)
        parts.sampler.sync(0)
        gate.begin(parts)
        [found] = [f for f in gate.findings if f.check == "sampler-trainer"]
        assert found.level == ("PASS" if trained == rollout else "WARN"), found
        assert gate.validity != "INVALID"
        kind = "int8" if rollout == "int8" else rollout if trained == rollout else "mixed"
        assert found.measured.endswith(kind)


def test_what_departs_is_said() -> None:
    plain = spec({})
    assert not [d for d in deviations(plain, resolve(plain)) if "backend" in d]
    both = spec({"dtype": "bfloat16", "engine": {"dtype": "int8"}, "fp32_head": True})
    assert {"backend.engine.dtype: bfloat16 -> int8", "backend.fp32_head: False -> True"} <= set(
        deviations(both, resolve(both))
    )
    own = both.model_copy(update={"own_backend": {"dtype": "float32", "engine.dtype": None}})
    said = deviations(own, resolve(own))
    assert {"backend.dtype: float32 -> bfloat16", "backend.engine.dtype: float32 -> int8"} <= set(said)
    assert own.hash == both.hash, "in words only: the backend itself is hashed"


@pytest.mark.parametrize("rollout", ["int8", "bfloat16"])
def test_a_mixture_of_experts_samples_from_its_copy_and_says_its_routes(rollout: str) -> None:
    """R3 replays what the copy chose; the copy's own routers do not disturb those of the policy."""
    parts = assemble(run_spec("grpo", model={"name": "tiny-moe"}, backend={"engine": {"dtype": rollout}},
                              overrides={"routing_replay": "r3"}))  # fmt: skip
    outcome = one_step(parts.trainer, Progress(), 0.0)
    row = step_row(outcome, parts)
    assert row["mismatch/abs_dlogp_mean"] < 0.05
    assert row["health/skipped_updates"] == 0
    sampled: Any = parts.sampler
    assert sampled._policy is not parts.model.policy


def test_an_overflow_compares_routes_once() -> None:
    parts = assemble(run_spec("grpo", model={"name": "tiny-moe"}, backend={"dtype": "float16"}))
    parts.optimizers.policy.scale = 2.0**40
    outcome = one_step(parts.trainer, Progress(), 0.0)
    assert outcome.prepared is not None
    assert outcome.prepared.routing is not None
    assert len(outcome.prepared.routing.between) == len(outcome.traces) - 1


def test_a_killed_run_with_noise_and_rounded_rollouts_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "overrides": {"old_logp": "rollout", "logp_noise.sd": 0.1, "logp_noise.bias": 0.01},
        "backend": {"engine": {"dtype": "int8"}},
    }
    whole = make_folder(run_spec("gspo", steps=3, **changes), tmp_path / "whole")
    killed = make_folder(run_spec("gspo", steps=3, **changes), tmp_path / "killed")
    assert main([str(whole)]) == 0
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.saving, "SAVE_SHARE", 1e9)
    save, left = Checkpoints.save, [3]

    def dies(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            main([str(killed)])
    assert [p.name for p in checkpoint.steps(killed / "checkpoints")][-1] == "00000002", "in the middle"
    assert main([str(killed)]) == 0
    assert numbers_of(killed) == numbers_of(whole)
    assert weights_of(killed) == weights_of(whole)
