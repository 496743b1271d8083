"""Admission: which groups enter the batch."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from harness.core.masked import group_sum
from harness.core.parts import Admission, GroupView, Need
from harness.core.registry import part
from harness.core.shapes import Bool, Tensor


@part
@final
class All(Admission):
    """Every group enters."""

    kind: ClassVar[str] = "all"

    def __call__(self, view: GroupView) -> Bool[Tensor, "N"]:
        return torch.ones(view.num_groups, dtype=torch.bool, device=view.group.device)


@part
@final
class Mixed(Admission):
    """Dynamic sampling: a group enters iff its metric is not the same for all siblings (std > 0).

    Such a group is the only kind with a non-zero group advantage. `correct` is the paper's constraint
    0 < #correct < G; `reward` would let all-correct groups of unequal length through.
    Source: DAPO Eq. 11 and its recipe (`max_num_gen_batches = 10`; groups of one sample always enter).

    A refill generates whole batches, so it usually admits more groups than wanted. The recipe drops the surplus;
    `carry_over` puts it first in the next batch: batch s = groups (s - 1) W + 1 ... s W of the stream of admitted
    groups. Carried rows are one rollout batch off-policy. They keep the policy version and the behaviour log-probs of
    their sampling, and their old log-probs are computed anew like everybody's, under the weights at the start of the
    batch that trains on them; `correction=importance` weighs the gap between the two. Their tokens count once, when
    sampled.
    """

    kind: ClassVar[str] = "mixed"
    metric: Literal["correct", "reward"] = "correct"
    max_rounds: int = Field(default=10, ge=0)  # generation batches per step; 0 = no limit
    on_exhausted: Literal["train", "raise"] = "train"  # the recipe raises; ours trains on what was admitted
    keep_singletons: bool = True
    carry_over: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"verdict"}) if self.metric == "correct" else frozenset()

    @property
    def carries(self) -> bool:
        return self.carry_over

    @property
    def refill(self) -> tuple[int, Literal["train", "raise"]]:
        return self.max_rounds, self.on_exhausted

    def __call__(self, view: GroupView) -> Bool[Tensor, "N"]:
        x = view.correct.to(view.reward.dtype) if self.metric == "correct" else view.reward
        blank = x.new_zeros(view.num_groups)
        known, inf = view.reward.isfinite(), x.new_full((), torch.inf)  # the other rows abstain
        low = blank.scatter_reduce(0, view.group, torch.where(known, x, inf), "amin", include_self=False)
        high = blank.scatter_reduce(0, view.group, torch.where(known, x, -inf), "amax", include_self=False)
        single = torch.bincount(view.group, minlength=view.num_groups) == 1
        return (high > low) | (single & self.keep_singletons)


@part
@final
class MeanBetween(Admission):
    """A group enters iff low < mean reward of its siblings < high, strictly; each refused prompt is replaced by one.

    With rewards in [-1, 1] the default range would refuse every group that is mostly wrong. OpenRLHF has no bound on
    the replacements; ours trains on what was admitted after `max_rounds`. Source: OpenRLHF's dynamic filtering (0, 1).
    """

    kind: ClassVar[str] = "mean_between"
    low: float = 0.0
    high: float = 1.0
    max_rounds: int = Field(default=10, ge=0)  # generation batches per step; 0 = no limit
    on_exhausted: Literal["train", "raise"] = "train"

    @property
    def refill(self) -> tuple[int, Literal["train", "raise"]]:
        return self.max_rounds, self.on_exhausted

    @property
    def replaces(self) -> bool:
        return True

    def __call__(self, view: GroupView) -> Bool[Tensor, "N"]:
        known = view.reward.isfinite()  # the other rows abstain
        sizes = torch.bincount(view.group[known], minlength=view.num_groups)
        reward = torch.where(known, view.reward, 0.0)
        mean = group_sum(reward, view.group, view.num_groups) / sizes.clamp(min=1)
        return (self.low < mean) & (mean < self.high) & (sizes > 0)
