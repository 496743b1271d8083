"""Penalties: per-token terms of the loss or of the reward, besides the policy term."""

from __future__ import annotations

from typing import ClassVar, Literal, final

from pydantic import Field

from algorithms.parts.kl import Estimator, kl_estimate
from harness.core.masked import masked
from harness.core.parts import Need, Penalty, PenaltyInput
from harness.core.registry import part
from harness.core.shapes import Float, Tensor


@part
@final
class Kl(Penalty):
    """coef x KL(policy || reference) per token, added to the loss or taken from the token reward.

    In the reward it is computed once per rollout batch from the old policy. `clamp` is verl's guard on k3.
    Moving k3 from loss to reward changes place and divergence together; k2 in the loss is the level between.
    """

    kind: ClassVar[str] = "kl"
    coef: float = Field(default=0.001, ge=0.0)
    estimator: Estimator = "k3"
    place: Literal["loss", "reward"] = "loss"
    clamp: bool = True

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"reference"}) if self.coef else frozenset()

    @property
    def weight(self) -> float:
        return self.coef

    @property
    def in_reward(self) -> bool:
        return self.place == "reward"

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        assert view.ref_logp is not None, "a KL penalty declares that it needs a reference policy"
        logp, ref, old = (masked(x, view.mask) for x in (view.logp, view.ref_logp, view.old_logp))
        return kl_estimate(self.estimator, logp, ref, old, self.clamp)


@part
@final
class Entropy(Penalty):
    """-coef x H(policy) per token: an entropy bonus. Source: GFPO section 4 (0.001)."""

    kind: ClassVar[str] = "entropy"
    coef: float = Field(default=0.001, ge=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"entropy"}) if self.coef else frozenset()

    @property
    def weight(self) -> float:
        return -self.coef

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        assert view.entropy is not None, "an entropy bonus declares that it needs the policy's entropy"
        return masked(view.entropy, view.mask)
