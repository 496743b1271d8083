"""Rewards: shaping of the task's reward, one number per row."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, final

import torch
from pydantic import Field, model_validator

from harness.core.errors import UsageError
from harness.core.parts import Reward, RowView
from harness.core.registry import part
from harness.core.shapes import Float, Tensor


def _room(cache: int, limit: int) -> None:
    if cache > limit:
        raise UsageError(
            f"overlong cache={cache} with limit={limit}",
            "the punished zone is the last `cache` tokens before the limit, so it cannot be longer than the limit",
            f"a cache of about {max(limit // 5, 1)}, or none to take a fifth of the limit",
        )


@part
@final
class Overlong(Reward):
    """Soft overlong punishment, added to the reward before the group statistics.

    R_i + f (hi - lo) p(n_i), p = 0 up to limit - cache, then (limit - cache - n_i) / cache, which is -1 at the limit.
    Beyond the limit: `flat` stays at -1 (OpenRLHF, TRL), `linear` keeps falling (verl).
    Source: DAPO Eq. 13 (limit 20480, cache 4096). Its -1 is half of a reward range of [-1, 1], hence f = 0.5.
    """

    kind: ClassVar[str] = "overlong"
    cache: int | None = Field(default=None, ge=1)  # tokens; None = a fifth of the limit, the paper's 4096 of 20480
    limit: int | None = Field(default=None, ge=1)  # tokens; None = the run's generation limit
    fraction: float = Field(default=0.5, ge=0.0, le=1.0)  # of the task's reward range
    beyond: Literal["flat", "linear"] = "flat"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cache is not None and self.limit is not None:
            _room(self.cache, self.limit)
        return self

    def __call__(self, view: RowView) -> Float[Tensor, "B"]:
        limit = view.limit if self.limit is None else self.limit
        cache = max(limit // 5, 1) if self.cache is None else self.cache
        _room(cache, limit)
        low, high = view.reward_range
        over = (view.length - (limit - cache)).to(view.reward.dtype) / cache
        share = over.clamp(min=0.0, max=1.0 if self.beyond == "flat" else None)
        return view.reward - self.fraction * (high - low) * share


@part
@final
class Random(Reward):
    """A fair coin in the task's reward range instead of the reward: the control for gains that need no signal.

    Source: arXiv:2506.10947 (random rewards lifted one model family by 21 points).
    """

    kind: ClassVar[str] = "random"

    def __call__(self, view: RowView) -> Float[Tensor, "B"]:
        low, high = view.reward_range
        coin = torch.where(view.uniform < 0.5, high, low)
        return coin.to(view.reward.dtype)


@part
@final
class Clipped(Reward):
    """R_i limited to [low, high]; one that is not finite stays so, and its row abstains.

    Source: OpenRLHF `reward_clip_range` (-10, 10).
    """

    kind: ClassVar[str] = "clip"
    low: float = -10.0
    high: float = 10.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise UsageError(
                f"reward clip from {self.low} to {self.high}", "no reward fits", "rewards.clip.low <= rewards.clip.high"
            )
        return self

    def __call__(self, view: RowView) -> Float[Tensor, "B"]:
        return torch.where(view.reward.isfinite(), view.reward.clamp(self.low, self.high), view.reward)
