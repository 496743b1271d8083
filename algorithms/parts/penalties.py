"""Penalties: per-token terms of the loss or of the reward, besides the policy term."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self, final

from pydantic import Field, model_validator

from algorithms.parts.kl import Estimator, adapted, kl_estimate
from harness.core.errors import UsageError
from harness.core.masked import masked, masked_sum
from harness.core.parts import Need, Penalty, PenaltyInput
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor


@part
@final
class Kl(Penalty):
    """coef x KL(policy || reference) per token, added to the loss or taken from the token reward.

    In the reward it is computed once per rollout batch from the old policy. `clamp` is verl's guard on k3.
    `bound` limits every estimator's value (OpenRLHF: 10). `target` makes the coefficient adaptive: after each rollout
    batch it moves so that the KL in the reward, averaged over responses, approaches the target (`kl.adapted`).
    Moving k3 from loss to reward changes place and divergence together; k2 in the loss is the level between.
    `aggregate` averages the term in the loss in its own way: verl's GSPO averages the policy term by response and the
    KL term by its `loss_agg_mode`.
    """

    kind: ClassVar[str] = "kl"
    coef: float = Field(default=0.001, ge=0.0)
    estimator: Estimator = "k3"
    place: Literal["loss", "reward"] = "loss"
    clamp: bool = True
    bound: float | None = Field(default=None, gt=0.0)
    target: float | None = Field(default=None, gt=0.0)  # nats per token; None = a fixed coefficient
    horizon: float | None = Field(default=None, gt=0.0)  # responses; verl 10000

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.target is None) != (self.horizon is None):
            raise UsageError(
                f"penalties.kl with target={self.target} and horizon={self.horizon}",
                "an adaptive coefficient needs both, a fixed one neither",
                "penalties.kl.target=0.1 and penalties.kl.horizon=10000, or leave both out",
            )
        if self.target is not None and self.place == "loss":
            raise UsageError(
                f"penalties.kl with target={self.target} and place=loss",
                "the controller measures the KL that is taken from the reward, once per rollout batch",
                "penalties.kl.place=reward, or a fixed coefficient",
            )
        return self

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"reference"}) if self.coef else frozenset()

    @property
    def weight(self) -> float:
        return self.coef

    @property
    def in_reward(self) -> bool:
        return self.place == "reward"

    @property
    def adaptive(self) -> bool:
        return self.target is not None

    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]:
        assert view.ref_logp is not None, "a KL penalty declares that it needs a reference policy"
        logp, ref, old = (masked(x, view.mask) for x in (view.logp, view.ref_logp, view.old_logp))
        return kl_estimate(self.estimator, logp, ref, old, self.clamp, self.bound)

    def mean(self, value: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        """Mean over responses, empty ones included, of the mean over tokens; verl's n_i + 1e-8."""
        return (masked_sum(value, mask) / (mask.sum(-1).to(value.dtype) + 1e-8)).mean()

    def next_weight(self, value: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float | None:
        if self.target is None or self.horizon is None:
            return None
        kl = float(self.mean(value, mask))
        return adapted(self.coef, kl, self.target, self.horizon, len(mask)) if math.isfinite(kl) else self.coef

    def with_weight(self, weight: float) -> Kl:
        return self if self.target is None else self.model_copy(update={"coef": weight})


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
