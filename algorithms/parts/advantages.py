"""Advantages: rewards -> `[B, T]`, 0 at masked positions and in rows that were not selected."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from algorithms.parts.groupstats import Std, centred, deviation, scaled, zscore
from harness.core.masked import masked
from harness.core.parts import Advantage, AdvantageInput, Advantages, CriticPlan, Need
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Int, Tensor


def spread(row: Float[Tensor, "B"], view: AdvantageInput) -> Float[Tensor, "B T"]:
    return masked(row[:, None].expand(view.mask.shape), view.mask)


def group_advantage(
    view: AdvantageInput, std: Std, eps: float, scope: Literal["group", "batch"], singleton: Literal["zero", "raw"]
) -> Float[Tensor, "B"]:
    """A_i = (R_i - mu_g) / (sigma + eps) over kept rows, `[B]`; see `Group`."""
    if scope == "batch" and std != "none":
        pooled = deviation(view.reward, view.kept, torch.zeros_like(view.group), 1, std)
        result = scaled(centred(view.reward, view.kept, view.group, view.num_groups), pooled + eps)
    else:
        result = zscore(view.reward, view.kept, view.group, view.num_groups, std, eps)
    if singleton == "raw":
        alone = torch.bincount(view.group[view.kept], minlength=view.num_groups)[view.group] == 1
        raw = view.reward / (1.0 if std == "none" else 1.0 + eps)
        result = torch.where(alone & view.kept, raw, result)
    return result


@part
@final
class Group(Advantage):
    """A_i = (R_i - mu_g) / (sigma_g + eps), the same for all tokens of the row.

    mu and sigma run over the group's kept rows. `scope="batch"` divides by the batch's standard deviation (TRL),
    `std="none"` only centres (Dr. GRPO), `singleton="raw"` leaves A = R / (1 + eps) for a group of one (verl).
    Source: DeepSeekMath section 4.1; eps and the unbiased sigma from verl, since papers leave both open.
    """

    kind: ClassVar[str] = "group"
    std: Std = "unbiased"
    eps: float = Field(default=1e-6, ge=0.0)
    scope: Literal["group", "batch"] = "group"
    singleton: Literal["zero", "raw"] = "zero"

    def __call__(self, view: AdvantageInput) -> Advantages:
        row = group_advantage(view, self.std, self.eps, self.scope, self.singleton)
        return Advantages(advantages=spread(row, view))


@part
@final
class LeaveOneOut(Advantage):
    """A_i = R_i - mean of the rewards of the group's other kept rows; no scaling.

    A lone row gets 0, with `singleton="raw"` its reward (verl). Source: RLOO (2402.14740).
    """

    kind: ClassVar[str] = "rloo"
    singleton: Literal["zero", "raw"] = "zero"

    def __call__(self, view: AdvantageInput) -> Advantages:
        size = torch.bincount(view.group[view.kept], minlength=view.num_groups)[view.group]
        row = centred(view.reward, view.kept, view.group, view.num_groups) * size / (size - 1).clamp(min=1)
        if self.singleton == "raw":
            row = torch.where((size == 1) & view.kept, view.reward, row)
        return Advantages(advantages=spread(row, view))


def mean_of_later_steps(z: Float[Tensor, "S"], view: AdvantageInput) -> Float[Tensor, "B T"]:
    """At (i, t): mean of z over the steps of row i that end at or after t; 0 where there is none."""
    assert view.credit is not None
    at = (view.credit.row, view.credit.end)
    total = torch.zeros(view.mask.shape, dtype=z.dtype, device=z.device)
    count = torch.zeros_like(total).index_put(at, torch.ones_like(z), accumulate=True)
    total = total.index_put(at, z, accumulate=True)
    return total.flip(1).cumsum(1).flip(1) / count.flip(1).cumsum(1).flip(1).clamp(min=1)


@part
@final
class Process(Advantage):
    """A_it = A_i + w mean of z_ij over the steps j of row i that end at or after t (0 where there is none).

    z_ij is the z-score of the step's reward over all steps of the group's kept rows; A_i as in `Group`.
    A mean, so that more steps do not pay more. Without steps it is the outcome alone.
    Source: DeepSeekMath section 4.1.3, with the sum replaced by a mean.
    """

    kind: ClassVar[str] = "process"
    per_token: ClassVar[bool] = True
    weight: float = Field(default=1.0, ge=0.0)
    std: Std = "unbiased"
    eps: float = Field(default=1e-6, ge=0.0)
    scope: Literal["group", "batch"] = "group"
    singleton: Literal["zero", "raw"] = "zero"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"credit"})

    def __call__(self, view: AdvantageInput) -> Advantages:
        outcome = spread(group_advantage(view, self.std, self.eps, self.scope, self.singleton), view)
        if view.credit is None or not len(view.credit.row):
            return Advantages(advantages=outcome)
        row, reward = view.credit.row, view.credit.reward.to(outcome.dtype)
        z = zscore(reward, view.kept[row], view.group[row], view.num_groups, self.std, self.eps)
        return Advantages(advantages=outcome + self.weight * masked(mean_of_later_steps(z, view), view.mask))


def turn_numbers(view: AdvantageInput) -> tuple[Int[Tensor, "B T"], Int[Tensor, "S"]]:
    """Number of the turn that each position belongs to, and of each entry of `view.turns`, from 0."""
    assert view.turns is not None
    at = (view.turns.row, view.turns.end)
    ended = torch.zeros(view.mask.shape, dtype=torch.long, device=view.mask.device)
    ended = ended.index_put(at, torch.ones_like(view.turns.row), accumulate=True)
    number = ended.cumsum(1) - ended
    return number, number[at]


def shaped_turns(view: AdvantageInput) -> Float[Tensor, "S"]:
    """What each turn earned; what shaping adds to a row's reward is added to its last turn."""
    assert view.turns is not None
    row, end, reward = view.turns.row, view.turns.end, view.turns.reward.to(view.reward.dtype)
    rest = view.reward - torch.zeros_like(view.reward).index_add(0, row, reward)
    last = torch.full_like(view.group, -1).scatter_reduce(0, row, end, "amax")
    return reward + torch.where(end == last[row], rest[row], 0.0)


@part
@final
class Turns(Advantage):
    """A_it = (G_ik - mu_gk) / (sigma_gk + eps), k the turn of token t and G_ik = sum_{j >= k} gamma^(j-k) r_ij.

    mu and sigma run over the kept siblings that have a k-th turn: a turn is compared with the same turn of the others.
    With one turn per response it is `group`. Ours, for GSPO-token: its paper (section 4.3) names per-turn advantages as
    what it is for, and leaves their definition open.
    """

    kind: ClassVar[str] = "turns"
    per_token: ClassVar[bool] = True
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)  # per turn
    std: Std = "unbiased"
    eps: float = Field(default=1e-6, ge=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"turns"})

    def __call__(self, view: AdvantageInput) -> Advantages:
        if view.turns is None or not len(view.turns.row):
            return Advantages(advantages=spread(zscore_of(view.reward, view.kept, view, self), view))
        number, turn = turn_numbers(view)
        shape = (len(view.reward), int(turn.max()) + 1)
        reward = view.reward.new_zeros(shape).index_put((view.turns.row, turn), shaped_turns(view))
        taken = torch.zeros(shape, dtype=torch.bool, device=turn.device)
        taken = taken.index_put((view.turns.row, turn), torch.ones_like(turn, dtype=torch.bool))
        to_go = torch.zeros_like(view.reward)
        columns: list[Tensor] = []
        for r, has in zip(reward.unbind(1)[::-1], taken.unbind(1)[::-1], strict=True):
            to_go = r + self.gamma * to_go
            columns.append(zscore_of(to_go, view.kept & has, view, self))
        per_turn = torch.stack(columns[::-1], 1)
        return Advantages(advantages=masked(per_turn.gather(1, number.clamp(max=shape[1] - 1)), view.mask))


def zscore_of(x: Float[Tensor, "B"], use: Bool[Tensor, "B"], view: AdvantageInput, part: Turns) -> Float[Tensor, "B"]:
    return zscore(x, use, view.group, view.num_groups, part.std, part.eps)


def last_token(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last response token of each row that has one."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def gae(
    reward: Float[Tensor, "B T"], values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float, lam: float
) -> Float[Tensor, "B T"]:
    """delta_t = r_t + gamma V_{t'} - V_t, A_t = delta_t + gamma lam A_{t'}; t' = the row's next response token.

    Tokens that the policy did not produce are skipped and cost no discount (verl). 0 at masked positions.
    """
    reward, values = masked(reward, mask), masked(values, mask)
    if not mask.shape[1]:
        return values
    advantage = next_value = torch.zeros_like(values[:, 0])
    columns: list[Tensor] = []
    for r, v, m in zip(*(x.unbind(1)[::-1] for x in (reward, values, mask)), strict=True):
        delta = r + gamma * next_value - v
        advantage = torch.where(m, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(m, v, next_value)
        columns.append(advantage)
    return masked(torch.stack(columns[::-1], 1), mask)


def paid(view: AdvantageInput, by_turn: bool = False) -> Float[Tensor, "B T"]:
    """Rewards per token: the row's reward at its last token, or each turn's at its own; plus `token_reward`."""
    if by_turn and view.turns is not None:
        at = (view.turns.row, view.turns.end)
        reward = masked(view.reward.new_zeros(view.mask.shape).index_put(at, shaped_turns(view)), view.mask)
    else:
        reward = torch.where(last_token(view.mask), view.reward[:, None], 0.0)
    return reward if view.token_reward is None else reward + masked(view.token_reward, view.mask)


def whitened(x: Float[Tensor, "B T"], use: Bool[Tensor, "B T"], eps: float = 1e-8) -> Float[Tensor, "B T"]:
    """(x - mean) / sqrt(var + 1e-8) over the tokens in use, unbiased var; 0 elsewhere.

    The constants are verl's, its means' denominator N + eps included. One token alone gives 0.
    """
    count = use.sum().to(x.dtype)
    mean = masked(x, use).sum() / (count + eps)
    var = masked((x - mean).square(), use).sum() / (count + eps) * count / (count - 1).clamp(min=1)
    return masked((x - mean) * torch.rsqrt(var + 1e-8), use)


@part
@final
class Gae(Advantage):
    """Generalised advantage estimation with a critic; targets = A + V before whitening.

    The row's reward is paid at its last token (`rewards="turns"`: what each turn earned, at that turn's last token), on
    top of `token_reward` (KL in reward). `value_clip` and `warmup_steps` (rollout steps that train the critic with the
    actor frozen) are read by the critic's update.
    Source: Schulman et al. 2016; verl `compute_gae_advantage_return` (gamma 1, lambda 1, value clip 0.5).
    """

    kind: ClassVar[str] = "gae"
    group_relative: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    reads_token_reward: ClassVar[bool] = True
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    lam: float = Field(default=1.0, ge=0.0, le=1.0)
    whiten: bool = True
    value_clip: float | None = Field(default=0.5, gt=0.0)
    warmup_steps: int = Field(default=5, ge=0)
    rewards: Literal["outcome", "turns"] = "outcome"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"critic", "turns"}) if self.rewards == "turns" else frozenset({"critic"})

    @property
    def critic(self) -> CriticPlan:
        return CriticPlan(value_clip=self.value_clip, warmup_steps=self.warmup_steps)

    def __call__(self, view: AdvantageInput) -> Advantages:
        assert view.values is not None, "gae declares that it needs a critic"
        values = masked(view.values, view.mask)
        raw = gae(paid(view, self.rewards == "turns").to(values.dtype), values, view.mask, self.gamma, self.lam)
        use = view.mask & view.kept[:, None]
        advantages = whitened(raw, use) if self.whiten else masked(raw, use)
        return Advantages(advantages=advantages, returns=raw + values)


@part
@final
class Correct(Advantage):
    """A_i = 1 for a correct row, else 0: with the `likelihood` surrogate, rejection-sampling fine-tuning."""

    kind: ClassVar[str] = "correct"
    group_relative: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"verdict"})

    def __call__(self, view: AdvantageInput) -> Advantages:
        assert view.correct is not None, "the batch carries the task's verdict"
        return Advantages(advantages=spread((view.correct & view.kept).to(view.reward.dtype), view))
