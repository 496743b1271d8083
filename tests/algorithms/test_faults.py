"""Faults break a run in exactly the stated way, can be scheduled, and show as deviations."""

from __future__ import annotations

import math

import pytest
import torch

from algorithms.parts.faults import ConstantReward, EntropyPull, Infinity, KlPull, LengthReward
from harness.core.algorithm import override
from harness.core.errors import UsageError
from harness.core.parts import PenaltyInput, RowView
from harness.core.registry import algorithm
from harness.core.resolve import scheduled
from harness.core.spec import Recipe, ScheduleEntry

MASK = torch.tensor([[True, True, False], [True, False, False]])
LOGP = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.nan, math.nan]])
REF = torch.tensor([[-1.5, -1.0, math.nan], [-0.5, math.nan, math.nan]])


def view(entropy: bool = False) -> PenaltyInput:
    return PenaltyInput(
        logp=LOGP, old_logp=LOGP, ref_logp=REF, entropy=torch.full((2, 3), 0.7) if entropy else None, mask=MASK
    )


def rows() -> RowView:
    reward = torch.tensor([0.0, 1.0])
    return RowView(
        reward=reward, correct=reward > 0.5, length=torch.tensor([2, 8]), group=torch.tensor([0, 0]), num_groups=1,
        limit=10, reward_range=(-1.0, 1.0), uniform=torch.tensor([0.1, 0.9]),
    )  # fmt: skip


def test_rewards_that_carry_no_signal_or_the_wrong_one() -> None:
    assert ConstantReward()(rows()).tolist() == [-1.0, -1.0]
    assert LengthReward()(rows()).tolist() == pytest.approx([-0.6, 0.6])


def test_penalties_with_the_wrong_sign() -> None:
    assert KlPull(coef=-0.5).weight == -0.5
    assert KlPull()(view())[MASK].tolist() == pytest.approx([0.125, 0.5, 0.0])
    assert EntropyPull(coef=-0.5).weight == 0.5  # entropy is added to the loss
    assert EntropyPull()(view(entropy=True))[MASK].tolist() == pytest.approx([0.7] * 3)
    assert EntropyPull()(view(entropy=True))[~MASK].tolist() == [0.0] * 3


def test_an_infinite_term() -> None:
    value = Infinity()(view())
    assert bool(value[MASK].isinf().all())
    assert value[~MASK].tolist() == [0.0] * 3


def test_every_fault_can_be_scheduled_and_shows_in_the_record() -> None:
    grpo = override(algorithm("grpo"), {"penalties.kl.coef": 1e-9})
    entries = (
        {"penalties.fault_kl": {"coef": -0.3}}, {"rewards.fault_length": {}}, {"rewards.fault_constant": {}},
        {"penalties.fault_inf": {}}, {"logp_noise.of": "behaviour", "logp_noise.sd": 0.2},
        {"penalties.fault_entropy": {"coef": -0.5}}, {"penalties.entropy": {"coef": 0.5}}, {"recipe.lr": 0.3},
        {"surrogate.low": 1e9, "surrogate.high": 1e9, "updates.epochs": 4},
    )  # fmt: skip
    for changes in entries:
        entry = ScheduleEntry(at=0.5, overrides=changes)
        before = scheduled(grpo, Recipe(), [entry], 0.49)
        assert before == (grpo, Recipe())
        assert scheduled(grpo, Recipe(), [entry], 0.5) != before


def test_leaving_the_reference_needs_a_reference() -> None:
    entry = ScheduleEntry(at=0.5, overrides={"penalties.fault_kl": {}})
    with pytest.raises(UsageError, match="reference"):
        scheduled(override(algorithm("grpo"), {"penalties.kl": None}), Recipe(), [entry], 1.0)
