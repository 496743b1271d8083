"""Selection: which rows of a group carry an advantage (GFPO)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import Field

from harness.core.masked import group_sum
from harness.core.parts import RowView, Selected, Selection
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Int, Tensor


def best_of_group(view: RowView, value: Float[Tensor, "B"], k: Int[Tensor, "N"]) -> Bool[Tensor, "B"]:
    """True for the `k[g]` rows of highest `value` in each group; ties: shorter first, then the lower row index.

    Rows without a finite reward come last: they carry no advantage.
    """
    value = torch.where(view.reward.isfinite(), value, -torch.inf)
    order = torch.argsort(view.length, stable=True)
    order = order[torch.argsort(value[order], descending=True, stable=True)]
    order = order[torch.argsort(view.group[order], stable=True)]
    sizes = torch.bincount(view.group, minlength=view.num_groups)
    ranked = view.group[order]
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[ranked]
    kept = torch.zeros_like(view.correct)
    kept[order] = place < k[ranked]
    return kept


def _constant(view: RowView, k: int) -> Int[Tensor, "N"]:
    return torch.full((view.num_groups,), k, device=view.group.device)


@part
@final
class All(Selection):
    """Every row."""

    kind: ClassVar[str] = "all"

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        return Selected(kept=torch.ones_like(view.correct), history=history)


@part
@final
class Shortest(Selection):
    """The k shortest responses of a group: value = -n_i. Source: GFPO section 3."""

    kind: ClassVar[str] = "shortest"
    k: int = Field(default=8, ge=1)

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        kept = best_of_group(view, -view.length.to(view.reward.dtype), _constant(view, self.k))
        return Selected(kept=kept, history=history)


@part
@final
class TokenEfficiency(Selection):
    """The k responses of highest reward per token: value = R_i / max(n_i, 1). Source: GFPO section 3.

    With 0/1 rewards, a group with k or more correct responses keeps only correct ones and has no gradient.
    """

    kind: ClassVar[str] = "token_efficiency"
    k: int = Field(default=8, ge=1)

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        kept = best_of_group(view, view.reward / view.length.clamp(min=1), _constant(view, self.k))
        return Selected(kept=kept, history=history)


@part
@final
class Random(Selection):
    """k responses at random: the placebo that separates "a bigger group" from "filtering by a metric"."""

    kind: ClassVar[str] = "random"
    k: int = Field(default=8, ge=1)

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        return Selected(kept=best_of_group(view, view.uniform, _constant(view, self.k)), history=history)


@part
@final
class Adaptive(Selection):
    """The k shortest with k from the prompt's difficulty among all prompts seen so far.

    mu_g = mean reward of the group, appended to the history before the query (groups in index order);
    k = k_very_hard if mu_g < q25, k_hard if < q50, k_medium if < q75, else k_easy; k_very_hard until more than
    `warmup_prompts` prompts were seen. Quantiles are exact (linear interpolation) where the paper uses a t-digest, and
    run over the last `window` prompts where one is set.
    Source: GFPO Algorithm 2 (8, 8, 6, 4 of 16).
    """

    kind: ClassVar[str] = "adaptive"
    k_very_hard: int = Field(default=8, ge=1)
    k_hard: int = Field(default=8, ge=1)
    k_medium: int = Field(default=6, ge=1)
    k_easy: int = Field(default=4, ge=1)
    warmup_prompts: int = Field(default=64, ge=0)  # two rollout batches of 32 prompts; the paper: "a few steps"
    window: int | None = Field(default=None, ge=1)  # prompts; None = all, as in the paper

    @property
    def k(self) -> int:
        """The most rows that may be kept."""
        return max(self.k_very_hard, self.k_hard, self.k_medium, self.k_easy)

    def quartiles(self, seen: Float[Tensor, "H"]) -> Float[Tensor, "3"]:
        """q25, q50 and q75 of the history."""
        recent = seen if self.window is None else seen[-self.window :]
        return torch.quantile(recent, recent.new_tensor([0.25, 0.5, 0.75]))

    def choose(self, seen: Float[Tensor, "H"]) -> int:
        """k for the last entry of the history of group mean rewards."""
        if len(seen) <= self.warmup_prompts:
            return self.k_very_hard
        above = int((seen[-1] >= self.quartiles(seen)).sum())
        return (self.k_very_hard, self.k_hard, self.k_medium, self.k_easy)[above]

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        known = view.reward.isfinite()
        sizes = torch.bincount(view.group[known], minlength=view.num_groups)
        reward = torch.where(known, view.reward, 0.0).double()
        means = (group_sum(reward, view.group, view.num_groups) / sizes.clamp(min=1))[sizes > 0]
        seen = torch.tensor([*history, *means.tolist()], dtype=torch.float64)
        # A group without a finite reward has no difficulty: no trace in the history, and the k of the warm-up.
        last = (len(history) + (sizes > 0).cumsum(0)).tolist()
        ends = zip(last, sizes.tolist(), strict=True)
        chosen = [self.choose(seen[:end]) if some else self.k_very_hard for end, some in ends]
        k = torch.tensor(chosen, dtype=torch.int64)
        kept = best_of_group(view, -view.length.to(view.reward.dtype), k.to(view.group.device))
        return Selected(kept=kept, history=tuple(seen.tolist()))
