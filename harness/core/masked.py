"""Masked arithmetic over `[B, T]`: a masked position never reaches a result, not even as NaN."""

from __future__ import annotations

import torch

from harness.core.shapes import Bool, Float, Int, Tensor


def masked(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`x` where the mask is true, exactly 0 (value and gradient) elsewhere, whatever garbage stands there."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """Sum over the row's tokens, `[B]`."""
    return masked(x, mask).sum(-1)


def masked_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean over all tokens of the batch; 0 for an all-masked one."""
    return masked(x, mask).sum() / mask.sum().clamp(min=1)


def row_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
    """Mean over each row's tokens, `[B]`; 0 for an empty row."""
    return masked_sum(x, mask) / mask.sum(-1).clamp(min=1)


def group_sum(x: Float[Tensor, "B"], group: Int[Tensor, "B"], num_groups: int) -> Float[Tensor, "N"]:
    """Sum of a row quantity per group, `[num_groups]`."""
    return torch.zeros(num_groups, dtype=x.dtype, device=x.device).index_add_(0, group, x)
