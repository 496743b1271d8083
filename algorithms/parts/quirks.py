"""What libraries do differently, without a paper behind it. Only `algorithms/peers.py` and conformance reach it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, final

import torch
from pydantic import Field

from algorithms.parts.advantages import paid, spread, whitened
from harness.core.masked import group_sum, masked
from harness.core.parts import Advantage, AdvantageInput, Advantages, CriticPlan, Need
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import BatchTotals


@part
@final
class GroupVectorized(Advantage):
    """The group advantage in float32 from sums of squares, its variance floored: verl `grpo_vectorized`.

    var = (sum R^2 - (sum R)^2 / n) / (n - 1), not below `floor`; a lone row keeps A = R / (1 + eps).
    """

    kind: ClassVar[str] = "group_verl_vectorized"
    eps: float = Field(default=1e-6, ge=0.0)
    floor: float = Field(default=1e-6, ge=0.0)
    scale: bool = True

    def __call__(self, view: AdvantageInput) -> Advantages:
        reward = torch.where(view.kept, view.reward, 0.0).float()
        count = group_sum(view.kept.float(), view.group, view.num_groups)
        first, second = (group_sum(x, view.group, view.num_groups) for x in (reward, reward.square()))
        mean = first / count.clamp(min=1)
        var = (second - first.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
        std = var.clamp(min=self.floor).sqrt()
        alone = count <= 1
        mean, std = torch.where(alone, 0.0, mean), torch.where(alone, 1.0, std)
        row = reward - mean[view.group]
        row = row / (std[view.group] + self.eps) if self.scale else row
        return Advantages(advantages=spread(torch.where(view.kept, row, 0.0).to(view.reward.dtype), view))


def gae_all_positions(
    reward: Float[Tensor, "B T"], values: Float[Tensor, "B T"], gamma: float, lam: float
) -> Float[Tensor, "B T"]:
    """GAE over every position, masked ones included: an observation costs gamma lambda like a token."""
    advantage = next_value = torch.zeros_like(values[:, 0])
    columns: list[Tensor] = []
    for r, v in zip(reward.unbind(1)[::-1], values.unbind(1)[::-1], strict=True):
        advantage = r + gamma * next_value - v + gamma * lam * advantage
        next_value = v
        columns.append(advantage)
    return torch.stack(columns[::-1], 1)


@part
@final
class GaeOpenRlhf(Advantage):
    """GAE with values and rewards zeroed at masked positions, which still cost gamma lambda; biased whitening.

    A = (A - mean) / sqrt(max(var, 1e-8)) with the biased var over the batch's tokens. Source: OpenRLHF.
    """

    kind: ClassVar[str] = "gae_openrlhf"
    group_relative: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    reads_token_reward: ClassVar[bool] = True
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    lam: float = Field(default=1.0, ge=0.0, le=1.0)
    whiten: bool = True
    value_clip: float | None = Field(default=0.5, gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"critic"})

    @property
    def critic(self) -> CriticPlan:
        return CriticPlan(value_clip=self.value_clip, warmup_steps=self.warmup_steps)

    def __call__(self, view: AdvantageInput) -> Advantages:
        assert view.values is not None, "it declares that it needs a critic"
        values = masked(view.values, view.mask)
        raw = gae_all_positions(paid(view).to(values.dtype), values, self.gamma, self.lam)
        use = view.mask & view.kept[:, None]
        count = use.sum().clamp(min=1)
        mean = masked(raw, use).sum() / count
        var = masked((raw - mean).square(), use).sum() / count
        white = (raw - mean) * var.clamp(min=1e-8).rsqrt() if self.whiten else raw
        return Advantages(advantages=masked(white, use), returns=masked(raw + values, view.mask))


def past_end(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """The row's tokens and the position after them, where there is one: n_i + 1 positions of an unbroken row."""
    return torch.arange(mask.shape[1], device=mask.device) <= mask.sum(-1, keepdim=True)


@part
@final
class GaeTrl(Advantage):
    """GAE over n_i + 1 positions: the score is paid one position after the last token, where the critic has a value.

    A full row is paid at its last token. `whiten_rewards` scales the rewards by their deviation first.
    Source: TRL's former PPO trainer. Our critic gives no value past the end, so it is for conformance only.
    """

    kind: ClassVar[str] = "gae_trl"
    group_relative: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    reads_token_reward: ClassVar[bool] = True
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    whiten_rewards: bool = False
    value_clip: float | None = Field(default=0.2, gt=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"critic", "values_past_end"})

    @property
    def critic(self) -> CriticPlan:
        return CriticPlan(value_clip=self.value_clip, warmup_steps=0)

    def rewards(self, view: AdvantageInput) -> Float[Tensor, "B T"]:
        """Rewards per position, before any whitening of advantages."""
        longer = past_end(view.mask)
        ends = longer & ~torch.nn.functional.pad(longer[:, 1:], (0, 1))
        reward = paid(replace(view, mask=ends, token_reward=None))
        if view.token_reward is not None:
            reward = reward + masked(view.token_reward, view.mask)
        if not self.whiten_rewards:
            return reward
        mean = masked(reward, longer).sum() / longer.sum()
        return masked(whitened(reward, longer, eps=0.0) + mean, longer)

    def __call__(self, view: AdvantageInput) -> Advantages:
        assert view.values is not None, "it declares that it needs a critic"
        values = masked(view.values, past_end(view.mask))
        raw = gae_all_positions(self.rewards(view), values, self.gamma, self.lam)
        use = view.mask & view.kept[:, None]
        return Advantages(advantages=whitened(raw, use, eps=0.0), returns=raw + values)


def joint_loss(policy: Float[Tensor, ""], value: Float[Tensor, ""], vf_coef: float) -> Float[Tensor, ""]:
    """policy + vf_coef value, one optimizer for both networks. Source: TRL's former PPO trainer."""
    return policy + vf_coef * value


def trl_totals(own: BatchTotals, num_items: float, grad_accum: int, steps_per_generation: int) -> BatchTotals:
    """TRL's token count: that of the generation batch, averaged over its optimizer steps, instead of this step's."""
    return replace(own, tokens=num_items * grad_accum / steps_per_generation)


def verl_totals(
    own: BatchTotals, tokens: float | None, sequences: float | None, width: float | None, ranks: int
) -> BatchTotals:
    """verl's global denominators, given for all data-parallel ranks, for the loss of one of them."""
    return replace(
        own,
        tokens=own.tokens if tokens is None else tokens / ranks,
        rows_nonempty=own.rows_nonempty if sequences is None else sequences / ranks,
        width=own.width if width is None else width,
    )


def last_is_cut(last_token: Int[Tensor, "B"], eos: int, pad: int) -> Bool[Tensor, "B"]:
    """Truncated by TRL's rule: the last token is neither the end token nor padding."""
    return (last_token != eos) & (last_token != pad)
