"""Shapes that a public function expects, said before torch broadcasts or fails somewhere else."""

from __future__ import annotations

import torch

from harness.core.errors import UsageError
from harness.core.shapes import Tensor


def expect_shape(where: str, shape: tuple[int, ...], like: str, **given: Tensor | None) -> None:
    """Raises UsageError for the first tensor of another shape; None is skipped. `like` says whose shape it is."""
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise UsageError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}",
                f"that is the shape of {like}, and broadcasting would silently compute something else",
                f"{name} of shape {shape}",
            )


def expect_tokens(where: str, mask: Tensor, **given: Tensor | None) -> None:
    """Per-token tensors: a boolean mask `[B, T]` and everything else of its shape."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise UsageError(
            f"{where}: mask has shape {tuple(mask.shape)} and dtype {mask.dtype}, expected (B, T) and torch.bool",
            "it says which positions of B rows are tokens of the policy",
            "mask.bool() of shape (B, T)",
        )
    expect_shape(where, tuple(mask.shape), "mask", **given)
