"""Selection: which rows of a group carry an advantage (GFPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self, final

import torch
from pydantic import Field, model_validator

from algorithms.parts import tdigest as sketch
from harness.core.errors import UsageError
from harness.core.masked import group_sum
from harness.core.parts import Need, RowView, Selected, Selection
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


ATTRIBUTES = ("length", "reward", "correct")


@part
@final
class ByAttribute(Selection):
    """The k responses of a group with the highest (or lowest) value of an attribute or of a reward component.

    `by` is length, reward, correct, or the name of a component of the task's reward; a response that has no finite
    value comes last. Source: GFPO section 3, which leaves the metric open ("any response attribute").
    """

    kind: ClassVar[str] = "attribute"
    k: int = Field(default=8, ge=1)
    by: str = "reward"
    prefer: Literal["high", "low"] = "high"

    @property
    def component_names(self) -> tuple[str, ...]:
        return () if self.by in ATTRIBUTES else (self.by,)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"verdict"}) if self.by == "correct" else frozenset()

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        own = {"length": view.length, "reward": view.reward, "correct": view.correct}
        value = (own[self.by] if self.by in own else view.components[self.by]).to(view.reward.dtype)
        value = torch.where(value.isfinite(), value if self.prefer == "high" else -value, -torch.inf)
        return Selected(kept=best_of_group(view, value, _constant(view, self.k)), history=history)


@part
@final
class Adaptive(Selection):
    """The k shortest with k from the prompt's difficulty among all prompts seen so far.

    mu_g = mean reward of the group, appended to the history before the query (groups in index order);
    k = k_very_hard if mu_g < q25, k_hard if < q50, k_medium if < q75, else k_easy; k_very_hard until more than
    `warmup_prompts` prompts were seen. Quantiles are exact (linear interpolation) and run over the last `window`
    prompts where one is set. `tdigest` takes them, as the paper does, from a t-digest of all prompts instead, of at
    most that many centroids: the same up to that many prompts, an estimate in bounded memory beyond. With a reward of
    few levels an estimate just beside a level changes k for all prompts of that level.
    Source: GFPO Algorithm 2 (8, 8, 6, 4 of 16).
    """

    kind: ClassVar[str] = "adaptive"
    k_very_hard: int = Field(default=8, ge=1)
    k_hard: int = Field(default=8, ge=1)
    k_medium: int = Field(default=6, ge=1)
    k_easy: int = Field(default=4, ge=1)
    warmup_prompts: int = Field(default=64, ge=0)  # two rollout batches of 32 prompts; the paper: "a few steps"
    window: int | None = Field(default=None, ge=1)  # prompts; None = all, as in the paper
    tdigest: int | None = Field(default=None, ge=10)  # centroids; None = exact quantiles

    @model_validator(mode="after")
    def _sketched(self) -> Self:
        if self.tdigest is not None and self.window is not None:
            raise UsageError(
                f"selection.tdigest={self.tdigest} with selection.window={self.window}",
                "a t-digest forgets nothing, so there is no window in it",
                "one of them",
            )
        if self.tdigest is not None and not sketch.available():
            raise UsageError(
                f"selection.tdigest={self.tdigest}",
                "the package fastdigest, which computes it, is not installed",
                "pip install 'rl-harness[tdigest]', or exact quantiles (without selection.tdigest)",
            )
        return self

    @property
    def state(self) -> str:
        return "group_means" if self.tdigest is None else f"tdigest_{self.tdigest}"

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

    def follow(self, history: tuple[float, ...], means: Sequence[float]) -> tuple[list[int], tuple[float, ...]]:
        """k of each further prompt, given the mean rewards of their groups in order, and the history with them."""
        if self.tdigest is None:
            seen = torch.tensor([*history, *means], dtype=torch.float64)
            return [self.choose(seen[:end]) for end in range(len(history) + 1, len(seen) + 1)], tuple(seen.tolist())
        found, state = sketch.follow(history, means, self.tdigest)
        return [self._choose_by(mean, after) for mean, after in zip(means, found, strict=True)], state

    def _choose_by(self, mean: float, after: sketch.Seen) -> int:
        if after.values <= self.warmup_prompts:
            return self.k_very_hard
        above = sum(mean >= q for q in after.quartiles)
        return (self.k_very_hard, self.k_hard, self.k_medium, self.k_easy)[above]

    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected:
        known = view.reward.isfinite()
        sizes = torch.bincount(view.group[known], minlength=view.num_groups)
        reward = torch.where(known, view.reward, 0.0).double()
        means = (group_sum(reward, view.group, view.num_groups) / sizes.clamp(min=1))[sizes > 0]
        chosen, after = self.follow(history, means.tolist())
        # A group without a finite reward has no difficulty: no trace in the history, and the k of the warm-up.
        k = _constant(view, self.k_very_hard)
        k[sizes > 0] = torch.tensor(chosen, dtype=k.dtype, device=k.device)
        return Selected(kept=best_of_group(view, -view.length.to(view.reward.dtype), k), history=after)
