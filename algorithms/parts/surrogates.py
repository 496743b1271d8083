"""Surrogates: per-token loss from ratio and advantage."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import Field

from harness.core.errors import UsageError
from harness.core.parts import Surrogate, SurrogateOutput
from harness.core.registry import part
from harness.core.shapes import Float, Tensor


@part
@final
class Clip(Surrogate):
    """L = max(-A r, -A clip(r, 1 - low, 1 + high)); for A < 0 also L = min(L, -A dual).

    Gradient -A r' unless clipped, i.e. A > 0 and r > 1 + high, or A < 0 and r < 1 - low, or A < 0 and r > dual.
    `kappa_low` / `kappa_high` ask for a calibrated range: kappa x SD(log s), measured once before training and then
    frozen into `low` / `high` by `calibrated`. Source: PPO; separate bounds: DAPO; `dual`: arXiv:1912.09729.
    """

    kind: ClassVar[str] = "clip"
    low: float = Field(default=0.2, ge=0.0)
    high: float = Field(default=0.2, ge=0.0)
    dual: float | None = Field(default=None, gt=1.0)
    kappa_low: float | None = Field(default=None, gt=0.0)
    kappa_high: float | None = Field(default=None, gt=0.0)

    @property
    def needs_calibration(self) -> bool:
        """True until `calibrated` has turned the kappas into a range."""
        return self.kappa_low is not None or self.kappa_high is not None

    def calibrated(self, sd: float) -> Clip:
        """The same clip with low = kappa_low sd, high = kappa_high sd and no kappas left."""
        if not 0.0 < sd < float("inf"):
            raise UsageError(
                f"SD(log s) = {sd}",
                "a clip range in units of the drift needs a drift that is positive and finite",
                "measure it after at least one optimizer step, or set surrogate.low and surrogate.high",
            )
        low = self.low if self.kappa_low is None else self.kappa_low * sd
        high = self.high if self.kappa_high is None else self.kappa_high * sd
        return Clip(low=low, high=high, dual=self.dual)

    def unclipped(self) -> Clip:
        """The same surrogate with a range that no ratio leaves."""
        return Clip(low=float("inf"), high=float("inf"))

    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput:
        below, above = ratio < 1 - self.low, ratio > 1 + self.high
        low, high = below & (advantages < 0), above & (advantages > 0)
        bounded = ratio.clamp(1 - self.low, 1 + self.high)
        loss = -advantages * torch.where(low | high, bounded, ratio)
        dual = torch.zeros_like(low)
        if self.dual is not None:
            dual = (advantages < 0) & (loss > -advantages * self.dual)
            loss = torch.where(dual, -advantages * self.dual, loss)
        return SurrogateOutput(loss=loss, low=low, high=high, dual=dual, outside=below | above)


@part
@final
class Likelihood(Surrogate):
    """L = -A log pi: weighted maximum likelihood, no ratio and no trust region (rejection-sampling fine-tuning)."""

    kind: ClassVar[str] = "likelihood"
    clips: ClassVar[bool] = False

    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput:
        none = torch.zeros_like(logp, dtype=torch.bool)
        return SurrogateOutput(loss=-advantages * logp, low=none, high=none, dual=none, outside=none)


@part
@final
class TwoSided(Surrogate):
    """L = max(-A min(r, delta), -A clip(r, 1 - low, 1 + high)): the unclipped branch is bounded too.

    For delta > 1 + high it is the dual clip with c = delta; below that, it also bounds positive advantages.
    Source: INTELLECT-2; TRL `delta`.
    """

    kind: ClassVar[str] = "two_sided"
    low: float = Field(default=0.2, ge=0.0)
    high: float = Field(default=0.2, ge=0.0)
    delta: float = Field(default=4.0, gt=0.0)

    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput:
        capped = ratio.clamp(max=self.delta)
        below, above = capped < 1 - self.low, capped > 1 + self.high
        low, high = below & (advantages < 0), above & (advantages > 0)
        free, bounded = -advantages * capped, -advantages * ratio.clamp(1 - self.low, 1 + self.high)
        dual = (ratio > self.delta) & (advantages != 0) & ~(bounded > free)
        return SurrogateOutput(
            loss=torch.where(bounded > free, bounded, free), low=low, high=high, dual=dual, outside=below | above
        )


def _weighted_score(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    logp: Float[Tensor, "B T"],
    floor: float | None,
    ceiling: float,
) -> SurrogateOutput:
    """L = -sg[clip(r, floor, ceiling)] A log pi; a bound counts as active whatever the sign of A."""
    high = ratio > ceiling
    low = torch.zeros_like(high) if floor is None else ratio < floor
    loss = -ratio.clamp(floor, ceiling).detach() * advantages * logp
    return SurrogateOutput(loss=loss, low=low, high=high, dual=torch.zeros_like(high), outside=low | high)


@part
@final
class Cispo(Surrogate):
    """L = -sg[clip(r, 1 - low, 1 + high)] A log pi: the weight is clipped, the gradient of no token is dropped.

    Source: MiniMax-M1 (2506.13585) with verl's bounds on both sides.
    """

    kind: ClassVar[str] = "cispo"
    low: float = Field(default=0.2, ge=0.0)
    high: float = Field(default=0.2, ge=0.0)

    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput:
        return _weighted_score(ratio, advantages, logp, 1 - self.low, 1 + self.high)


@part
@final
class CispoCapped(Surrogate):
    """L = -sg[min(r, cap)] A log pi: only large weights are limited. Source: MiniMax-M1; TRL (`epsilon_high` = 5)."""

    kind: ClassVar[str] = "cispo_capped"
    cap: float = Field(default=5.0, gt=0.0)

    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput:
        return _weighted_score(ratio, advantages, logp, None, self.cap)
