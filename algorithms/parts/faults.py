"""Faults: parts that break a run on purpose, so that what notices collapses can be tested. Nothing else uses them.

Each is put in at a stated fraction of the budget by `schedule:`, and shows as a deviation of the run.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import Field

from algorithms.parts.kl import kl_estimate
from harness.core.masked import masked
from harness.core.parts import Correction, Need, Penalty, PenaltyInput, Reward, RowView
from harness.core.randomness import uniforms
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor

NOISE = 6607  # opens the random stream of the noise


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


@part
@final
class Noise(Correction):
    """The sampler reports log mu + N(0, sd^2) per token; nothing is corrected for it."""

    kind: ClassVar[str] = "fault_noise"
    sd: float = Field(default=0.1, gt=0.0)  # nats

    @property
    def active(self) -> bool:
        return False

    def reported(
        self, behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], key: tuple[int, ...]
    ) -> Float[Tensor, "B T"]:
        rows = [(*key, NOISE, row) for row in range(behaviour_logp.shape[0])]
        uniform = torch.from_numpy(uniforms(rows, behaviour_logp.shape[1])).clamp(1e-12, 1 - 1e-12)
        noise = self.sd * torch.special.ndtri(uniform).to(behaviour_logp)
        return behaviour_logp + masked(noise, mask)

    def __call__(
        self, old_logp: Float[Tensor, "B T"], behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        return torch.ones_like(old_logp)
