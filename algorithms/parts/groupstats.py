"""Statistics inside groups, the arithmetic of every group-relative advantage."""

from __future__ import annotations

from typing import Literal

import torch

from harness.core.masked import group_sum
from harness.core.shapes import Bool, Float, Int, Tensor

Std = Literal["unbiased", "biased", "none"]


def centred(
    x: Float[Tensor, "R"], use: Bool[Tensor, "R"], group: Int[Tensor, "R"], num_groups: int
) -> Float[Tensor, "R"]:
    """x - mean of its group over the rows in use, 0 elsewhere.

    Rows are first measured from their group's minimum, so an all-equal group gives exactly 0.
    """
    inf = x.new_full((), torch.inf)
    low = x.new_full((num_groups,), torch.inf).scatter_reduce(0, group, torch.where(use, x, inf), "amin")
    above = torch.where(use, x - low[group], 0.0)
    count = group_sum(use.to(x.dtype), group, num_groups).clamp(min=1)
    return torch.where(use, above - (group_sum(above, group, num_groups) / count)[group], 0.0)


def deviation(
    x: Float[Tensor, "R"], use: Bool[Tensor, "R"], group: Int[Tensor, "R"], num_groups: int, std: Std
) -> Float[Tensor, "R"]:
    """Standard deviation of each row's group over the rows in use; 1 for `none`."""
    if std == "none":
        return torch.ones_like(x)
    count = group_sum(use.to(x.dtype), group, num_groups)
    squares = group_sum(centred(x, use, group, num_groups).square(), group, num_groups)
    return (squares / (count - int(std == "unbiased")).clamp(min=1)).sqrt()[group]


def zscore(
    x: Float[Tensor, "R"], use: Bool[Tensor, "R"], group: Int[Tensor, "R"], num_groups: int, std: Std, eps: float
) -> Float[Tensor, "R"]:
    """(x - mean) / (std + eps) within each group, over the rows in use; 0 elsewhere. `none` only centres."""
    scale = deviation(x, use, group, num_groups, std) + (0.0 if std == "none" else eps)
    return scaled(centred(x, use, group, num_groups), scale)


def scaled(x: Float[Tensor, "R"], scale: Float[Tensor, "R"]) -> Float[Tensor, "R"]:
    """x / scale; 0 where the scale is 0, as in an all-equal group with eps = 0."""
    return torch.where(scale > 0, x / scale, 0.0)
