"""Advantages from several reward functions, the named components of the task's reward. NaN = a function abstains."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from algorithms.parts.advantages import group_advantage, spread
from algorithms.parts.groupstats import Std, zscore
from harness.core.errors import UsageError, near
from harness.core.parts import Advantage, AdvantageInput, Advantages, Need
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor

Weights = dict[str, float] | None


def weighted(view: AdvantageInput, weights: Weights) -> list[tuple[Float[Tensor, "B"], float]]:
    """The components in use with their weights; without `weights` all of them, each with 1."""
    found = dict(view.components or {})
    if not found:
        raise UsageError(
            "an advantage made of reward components",
            "this task's grades have no components, so every advantage would be 0",
            "advantage=group, or a task whose grades name the parts of their reward",
        )
    if weights is None:
        return [(values, 1.0) for values in found.values()]
    missing = next((name for name in weights if name not in found), None)
    if missing is not None:
        raise UsageError(f"advantage.weights[{missing!r}]", "the task has no such component", near(missing, found))
    return [(found[name], weight) for name, weight in weights.items()]


def usable(parts: list[tuple[Float[Tensor, "B"], float]], view: AdvantageInput) -> Bool[Tensor, "B"]:
    """Kept rows on which at least one function gave a number."""
    known = [~values.isnan() for values, _ in parts]
    return view.kept & torch.stack(known).any(0)


def total(parts: list[tuple[Float[Tensor, "B"], float]], like: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Weighted sum over the functions that did not abstain."""
    terms = [values.nan_to_num(nan=0.0) * weight for values, weight in parts]
    return torch.stack(terms).sum(0).to(like.dtype)


@part
@final
class SumThenNormalize(Advantage):
    """The weighted sum of the components, then the group z-score as in `group`; rows where all abstain get 0.

    Source: TRL `sum_then_normalize`.
    """

    kind: ClassVar[str] = "sum_then_normalize"
    weights: Weights = None  # component -> weight; None = all, each 1
    std: Std = "unbiased"
    eps: float = Field(default=1e-6, ge=0.0)
    scope: Literal["group", "batch"] = "group"
    singleton: Literal["zero", "raw"] = "zero"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"components"})

    @property
    def component_names(self) -> tuple[str, ...]:
        return tuple(self.weights or ())

    def __call__(self, view: AdvantageInput) -> Advantages:
        parts = weighted(view, self.weights)
        summed = replace(view, reward=total(parts, view.reward), kept=usable(parts, view))
        row = group_advantage(summed, self.std, self.eps, self.scope, self.singleton)
        return Advantages(advantages=spread(row, view))


@part
@final
class NormalizeThenSum(Advantage):
    """z-score of each component in its group, weighted sum, then the z-score over the batch.

    Keeps apart what a sum of rewards confounds. Source: GDPO (2601.05242); TRL `normalize_then_sum`.
    """

    kind: ClassVar[str] = "normalize_then_sum"
    weights: Weights = None
    std: Std = "unbiased"
    eps: float = Field(default=1e-6, ge=0.0)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"components"})

    @property
    def component_names(self) -> tuple[str, ...]:
        return tuple(self.weights or ())

    def __call__(self, view: AdvantageInput) -> Advantages:
        parts = weighted(view, self.weights)
        scored = []
        for values, weight in parts:
            known = view.kept & ~values.isnan()
            x = values.nan_to_num(nan=0.0).to(view.reward.dtype)
            scored.append((zscore(x, known, view.group, view.num_groups, self.std, self.eps), weight))
        row = zscore(
            total(scored, view.reward), usable(parts, view), torch.zeros_like(view.group), 1, self.std, self.eps
        )
        return Advantages(advantages=spread(row, view))
