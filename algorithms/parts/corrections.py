"""Corrections: weights for the gap between the policy that sampled and the trainer's copy of it."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from harness.core.masked import masked
from harness.core.parts import Correction
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor


@part
@final
class Uncorrected(Correction):
    """Weight 1 everywhere: the sampler's log-probs are taken to be the old policy's."""

    kind: ClassVar[str] = "none"

    @property
    def active(self) -> bool:
        return False

    def __call__(
        self, old_logp: Float[Tensor, "B T"], behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        return torch.ones_like(old_logp)


@part
@final
class Importance(Correction):
    """w = exp(clamp(log pi_old - log mu, -guard, guard)), per token or with the sum over the row; detached.

    `truncate` limits w to the cap, `mask` sets weights above it to 0. It multiplies the clipped loss of each token.
    Source: verl `rollout_is` (cap 2, guard 20); TRL's importance sampling correction (cap 3, no guard).
    """

    kind: ClassVar[str] = "importance"
    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = Field(default=2.0, gt=0.0)
    guard: float | None = Field(default=20.0, gt=0.0)

    def __call__(
        self, old_logp: Float[Tensor, "B T"], behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        d = (masked(old_logp, mask) - masked(behaviour_logp, mask)).detach()
        if self.level == "sequence":
            d = d.sum(-1, keepdim=True).expand(mask.shape)
        weight = (d if self.guard is None else d.clamp(-self.guard, self.guard)).exp()
        weight = weight.clamp(max=self.cap) if self.mode == "truncate" else weight.masked_fill(weight > self.cap, 0.0)
        return masked(weight, mask)
