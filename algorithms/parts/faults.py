"""Faults: parts that break a run on purpose, so that what notices collapses can be tested. Nothing else uses them.

Each is put in at a stated fraction of the budget by `schedule:`, and shows as a deviation of the run.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch

from algorithms.parts.kl import kl_estimate
from harness.core.masked import masked
from harness.core.parts import Need, Penalty, PenaltyInput, Reward, RowView
from harness.core.registry import part
from harness.core.shapes import Float, Tensor


@part
@final
class ConstantReward(Reward):
    """The same reward for every response, so that no group carries a signal."""

    kind: ClassVar[str] = "fault_constant"

    def __call__(self, view: RowView) -> Float[Tensor, "B"]:
        return torch.full_like(view.reward, view.reward_range[0])


@part
@final
class LengthReward(Reward):
    """The reward is the length, n_i / limit of the task's reward range: a reward that can be hacked."""

    kind: ClassVar[str] = "fault_length"

    def __call__(self, view: RowView) -> Float[Tensor, "B"]:
        low, high = view.reward_range
        return low + (high - low) * view.length.to(view.reward.dtype) / view.limit


@part
@final
class KlPull(Penalty):
    """coef x k2(policy || reference) with any sign: a negative coefficient pays for leaving the reference policy."""

    kind: ClassVar[str] = "fault_kl"
    coef: float = -0.1

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"reference"}) if self.coef else frozenset()

    @property
    def weight(self) -> float:
        return self.coef

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        assert view.ref_logp is not None, "it declares that it needs a reference policy"
        logp, ref, old = (masked(x, view.mask) for x in (view.logp, view.ref_logp, view.old_logp))
        return kl_estimate("k2", logp, ref, old)


@part
@final
class EntropyPull(Penalty):
    """-coef x H(policy) per token with any sign: a negative coefficient pays for certainty."""

    kind: ClassVar[str] = "fault_entropy"
    coef: float = -0.1

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"entropy"}) if self.coef else frozenset()

    @property
    def weight(self) -> float:
        return -self.coef

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        assert view.entropy is not None, "it declares that it needs the policy's entropy"
        return masked(view.entropy, view.mask)


@part
@final
class Infinity(Penalty):
    """An infinite term in every loss."""

    kind: ClassVar[str] = "fault_inf"

    @property
    def weight(self) -> float:
        return 1.0

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        return masked(torch.full_like(view.logp, torch.inf), view.mask)
