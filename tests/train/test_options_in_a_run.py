"""Exclusions, rollout correction and the adaptive KL through the real model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.core.errors import UsageError
from harness.train.loop import Progress, one_step
from harness.train.prepare import prepare
from tests.train.test_steps import assembly, furthest, gradient, prepared_batch

ADAPTIVE = {"estimator": "k2", "place": "reward", "coef": 0.1, "target": 1.0, "horizon": 1000.0}


def test_excluded_rows_leave_the_loss_but_not_the_statistics() -> None:
    parts = assembly("grpo", overrides={"exclusions.truncated": {}, "penalties.kl": None})
    t = parts.trainer
    batch = t.collate(t.gather(t.algorithm, t.recipe, Progress()).groups)
    cut = torch.arange(batch.num_rows) % 3 == 0
    ready = prepare(replace(batch, truncated=cut), t.algorithm, t.nets, t.facts, (0, 0), ())
    plain = prepare(replace(batch, truncated=~cut & cut), t.algorithm, t.nets, t.facts, (0, 0), ())
    assert not ready.mask[cut].any()
    assert ready.counted.all()
    assert torch.equal(ready.batch.mask, batch.mask)  # what was sampled stays as it was
    same = plain.advantages.advantages.masked_fill(cut[:, None], 0.0)
    torch.testing.assert_close(ready.advantages.advantages, same)


def test_a_rollout_correction_changes_the_gradient_only_where_the_policies_differ() -> None:
    plain = assembly("grpo", overrides={"penalties.kl": None})
    weighed = assembly("grpo", overrides={"penalties.kl": None, "correction": "importance", "correction.cap": 1e6})
    want = gradient(plain, prepared_batch(plain), 10**9)
    ready = prepared_batch(weighed)
    shifted = replace(ready, batch=replace(ready.batch, behaviour_logp=ready.batch.behaviour_logp - 1.0))
    assert furthest(want, gradient(weighed, shifted, 10**9)) > 1e-3


def test_an_adaptive_coefficient_moves_from_batch_to_batch() -> None:
    parts = assembly("ppo", overrides={"penalties.kl": ADAPTIVE})
    first = one_step(parts.trainer, Progress(), 0.0)
    rows = first.prepared.batch.num_rows if first.prepared else 0
    expected = 0.1 * (1 - 0.2 * rows / 1000)  # the KL of an untrained policy is 0, so the controller takes its limit
    assert first.progress.penalty_weight == pytest.approx(expected)
    second = one_step(parts.trainer, first.progress, 0.0)
    assert second.progress.penalty_weight is not None
    assert second.progress.penalty_weight < expected
    fixed = one_step(assembly("ppo").trainer, Progress(), 0.0)
    assert fixed.progress.penalty_weight is None


def test_reward_components_that_the_task_lacks_are_an_error() -> None:
    """Before anything is loaded or sampled."""
    with pytest.raises(UsageError, match="the task declares none"):
        assembly("grpo", overrides={"advantage": "normalize_then_sum", "penalties.kl": None})
