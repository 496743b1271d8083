"""Noise in the old log-probs: in every ratio, in nothing else, and the same however a step is computed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.algorithm import difference, override
from harness.core.errors import UsageError
from harness.core.noise import LogpNoise
from harness.core.registry import algorithm
from harness.core.resolve import deviations, resolve
from harness.gate import Gate
from harness.records import step_row
from harness.train.loop import Progress, StepOutcome, one_step
from tests.fakes.small_runs import run_spec
from tests.train.test_steps import assembly

MASK = torch.ones(200, 100, dtype=torch.bool)
MASK[:, 90:] = False


def test_it_is_gaussian_around_its_bias_and_spares_masked_positions() -> None:
    noise = LogpNoise(sd=0.3, bias=-0.2)
    d = noise.draw(MASK, (7, 1))
    used = d[MASK]
    assert float(used.mean()) == pytest.approx(-0.2, abs=0.01)
    assert float(used.std()) == pytest.approx(0.3, rel=0.02)
    assert float(((used + 0.2).abs() > 0.6).double().mean()) == pytest.approx(0.0455, abs=0.005)
    assert not d[~MASK].any()
    assert torch.equal(d, noise.draw(MASK, (7, 1)))
    assert not torch.equal(d, noise.draw(MASK, (7, 2)))
    assert torch.equal(d[:, :50], noise.draw(MASK[:, :50], (7, 1))), "padding of a batch moves nothing"
    assert bool((LogpNoise(bias=0.5).draw(MASK, (0, 0))[MASK] == 0.5).all())


def test_without_a_size_there_is_none_and_garbage_stays_out() -> None:
    logp = torch.full(MASK.shape, math.nan)
    none = LogpNoise()
    assert not none.active
    assert none.of_old(MASK, (0, 0)) is None
    assert none.reported(logp, MASK, (0, 0)) is logp
    assert LogpNoise(sd=1.0).reported(logp, MASK, (0, 0)) is logp, "the sampler is not what is disturbed"
    assert LogpNoise(of="behaviour", sd=1.0).of_old(MASK, (0, 0)) is None
    reported = LogpNoise(of="behaviour", sd=1.0).reported(torch.zeros(MASK.shape), MASK, (0, 0))
    assert reported[MASK].std() > 0.9
    assert not reported[~MASK].any()


@pytest.mark.parametrize(
    ("path", "value"), [("sd", -0.1), ("sd", math.inf), ("bias", math.nan), ("of", "reference"), ("size", 1.0)]
)
def test_a_noise_that_cannot_be_is_refused(path: str, value: Any) -> None:
    with pytest.raises(UsageError, match="logp_noise"):
        override(algorithm("grpo"), {f"logp_noise.{path}": value})


def test_it_is_a_deviation_of_the_run_and_changes_its_hash() -> None:
    plain = run_spec("grpo")
    noisy = plain.model_copy(update={"overrides": {**plain.overrides, "logp_noise.sd": 0.1, "logp_noise.bias": 0.01}})
    assert noisy.hash != plain.hash
    said = deviations(noisy, resolve(noisy))
    assert {"logp_noise.sd: 0 -> 0.1", "logp_noise.bias: 0 -> 0.01"} <= set(said)
    assert not [d for d in deviations(plain, resolve(plain)) if "noise" in d]
    assert "logp_noise.sd" in difference(resolve(plain), resolve(noisy))


def step(tokens: int = 10**9, **changes: Any) -> tuple[StepOutcome, dict[str, Any]]:
    parts = assembly(prompts=6, overrides={"penalties.kl": None, **changes})
    trainer = replace(parts.trainer, recipe=parts.trainer.recipe.model_copy(update={"micro_batch_tokens": tokens}))
    outcome = one_step(trainer, Progress(), 0.0)
    return outcome, dict(step_row(outcome, parts))


def injected(outcome: StepOutcome) -> list[Tensor]:
    found = []
    for t in outcome.traces:
        assert t.undisturbed is not None
        found.append((t.old_logp - t.undisturbed)[t.mask])
    return found


@pytest.mark.parametrize("old", ["train", "rollout"])
@pytest.mark.parametrize("mini_batches", [1, 4])
def test_every_ratio_divides_by_it_from_the_first_mini_batch_on(old: str, mini_batches: int) -> None:
    changes = {"updates.mini_batches": mini_batches} if mini_batches != 4 else {}
    changes |= {"old_logp": old} if old != "train" else {}
    plain, before = step(**changes)
    outcome, row = step(**changes, **{"logp_noise.sd": 0.2, "logp_noise.bias": 0.1})
    first, clean = outcome.traces[0], plain.traces[0]
    assert first.undisturbed is not None
    assert first.on_policy
    assert torch.equal(first.undisturbed, clean.old_logp)
    d = torch.cat(injected(outcome))
    assert float(d.mean()) == pytest.approx(0.1, abs=0.02)
    assert float(d.std()) == pytest.approx(0.2, rel=0.1)
    assert row["ratio/tok_min/first"] < 0.8 < 1.2 < row["ratio/tok_max/first"]
    assert row["mismatch/injected_mean"] == pytest.approx(float(d.mean()), abs=1e-5)
    assert row["mismatch/injected_sd"] == pytest.approx(float(d.std()), rel=1e-3)
    assert row["mismatch/abs_dlogp_mean"] < 1e-5, "what was put in is no disagreement of sampler and trainer"
    assert before["mismatch/injected_sd"] is None
    assert first.grad_norm != clean.grad_norm


def test_old_log_probs_are_kept_without_it() -> None:
    outcome, _ = step(**{"logp_noise.sd": 0.5})
    assert outcome.prepared is not None
    assert outcome.old_logp is not None
    rows = outcome.prepared.contributing
    mask = outcome.prepared.batch.mask[rows]
    gap = outcome.old_logp[rows][mask] - outcome.prepared.batch.behaviour_logp[rows][mask]
    assert float(gap.abs().max()) < 1e-4


def test_a_split_into_micro_batches_moves_none_of_it() -> None:
    whole, split = (step(tokens, **{"logp_noise.sd": 0.3})[0] for tokens in (10**9, 200))
    for one, two in zip(whole.traces, split.traces, strict=True):
        assert len(one.mask) == len(two.mask)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
    assert torch.allclose(*(torch.cat(injected(x)).sort().values for x in (whole, split)), atol=1e-6)


def test_a_sampler_that_misreports_shows_in_the_mismatch() -> None:
    outcome, row = step(**{"logp_noise.of": "behaviour", "logp_noise.sd": 0.2})
    assert row["mismatch/abs_dlogp_mean"] == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.1)
    assert row["mismatch/injected_sd"] is None
    assert torch.equal(outcome.traces[0].logp, outcome.traces[0].old_logp), "the ratio divides by the trainer's own"


@pytest.mark.parametrize("of", ["old", "behaviour"])
def test_the_gate_does_not_call_it_a_broken_engine(of: str, tmp_path: Path) -> None:
    parts = assembly(
        prompts=6,
        overrides={"penalties.kl": None, **({"logp_noise.of": of} if of != "old" else {}), "logp_noise.sd": 0.5},
    )
    outcome = one_step(parts.trainer, Progress(), 0.0)
    gate = Gate(parts.spec, tmp_path)
    gate.step(outcome, step_row(outcome, parts), parts)
    assert not [f for f in gate.findings if f.level == "INVALID"]
