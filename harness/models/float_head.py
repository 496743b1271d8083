"""An output head that computes in float32, whatever the model's precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.core.errors import UsageError
from harness.core.shapes import Float, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Float32Head(nn.Linear):
    """logits = float32(h) float32(W)' + float32(b), float32; the weights themselves stay as they are.

    So neither products nor sums nor the logits are rounded to the model's precision; h and W have been.
    Source: MiniMax-M1 (2506.13585), section 3.2.
    """

    _held: Tensor | None = None

    def forward(self, input: Float[Tensor, "... H"]) -> Float[Tensor, "... V"]:
        weight = self.weight.float() if self._held is None else self._held
        return nn.functional.linear(input.float(), weight, None if self.bias is None else self.bias.float())

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps the float32 weights until the context ends, for many calls under the same ones."""
        try:
            self._held = self.weight.detach().float()
            yield
        finally:
            self._held = None


def use_float32_head(policy: PreTrainedModel) -> None:
    """Makes the output head of a model one, in place."""
    head = policy.get_output_embeddings()
    if isinstance(head, Float32Head):
        return
    if type(head) is not nn.Linear:
        raise UsageError(
            f"backend.fp32_head = true for a {type(policy).__name__}",
            f"its output head is {'none' if head is None else 'a ' + type(head).__name__}, not a linear layer",
            "backend.fp32_head=false, or backend.dtype=float32",
        )
    head.__class__ = Float32Head


def is_linear_head(head: nn.Module) -> bool:
    """A linear output head without bias, in any of the two kinds: logits are one product."""
    return type(head) in (nn.Linear, Float32Head) and getattr(head, "bias", None) is None


def wide(head: nn.Module, hidden: Tensor) -> Tensor:
    """Hidden states in the precision in which the head computes."""
    return hidden.to(torch.float32) if isinstance(head, Float32Head) else hidden
