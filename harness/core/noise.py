"""Noise put into log-probs on purpose: what imprecise likelihoods would do to an algorithm, in a known amount."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from harness.core.masked import masked
from harness.core.randomness import uniforms
from harness.core.shapes import Bool, Float, Tensor

STREAM = 6607  # opens the random stream of the noise
EDGE = 1e-12  # keeps the normal quantile finite: |z| stays below 7.1


class LogpNoise(BaseModel):
    """d ~ Normal(bias, sd^2) per token in nats, independent of everything else; none by default.

    `of=old`: the ratio divides by exp(log pi_old + d), whichever log-probs it takes (`old_logp`), also at the first
    mini-batch. Only the ratio sees it: advantages, the KL in the reward, correction weights and mismatch metrics read
    the undisturbed ones. `of=behaviour`: the sampler reports log mu + d to everything that reads it, mismatch metrics
    included: a fault of the engine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Literal["old", "behaviour"] = "old"
    sd: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)

    @property
    def active(self) -> bool:
        """Whether there is any."""
        return self.sd > 0 or self.bias != 0

    def draw(self, mask: Bool[Tensor, "B T"], key: tuple[int, ...]) -> Float[Tensor, "B T"]:
        """d, 0 where masked. A value depends on `key` (of the step), row and position alone, so that neither a resume
        nor a split into micro-batches can change it."""
        z = torch.zeros(mask.shape, device=mask.device)
        if self.sd > 0:
            rows = [(*key, STREAM, row) for row in range(mask.shape[0])]
            uniform = torch.from_numpy(uniforms(rows, mask.shape[1])).clamp(EDGE, 1 - EDGE)
            z = torch.special.ndtri(uniform).to(z)
        return masked(self.bias + self.sd * z, mask)

    def of_old(self, mask: Bool[Tensor, "B T"], key: tuple[int, ...]) -> Float[Tensor, "B T"] | None:
        """What is added to the old log-probs; None where nothing is."""
        return self.draw(mask, key) if self.of == "old" and self.active else None

    def reported(
        self, behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], key: tuple[int, ...]
    ) -> Float[Tensor, "B T"]:
        """The behaviour log-probs as the trainer gets to see them."""
        if self.of == "old" or not self.active:
            return behaviour_logp
        return behaviour_logp + self.draw(mask, key).to(behaviour_logp.dtype)
