"""The weights that sample, in another precision than those that train: a copy, made anew after every update."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness.core.shapes import Float, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVELS = 127  # of each sign: symmetric, so that 0 stays 0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RolloutCopy:
    """A second model with the policy's weights in another precision; `refresh` takes them over again.

    float32, bfloat16, float16: every weight of the policy's dtype is cast, and the copy computes in that dtype; what
    the model keeps in another one (buffers such as rotary frequencies, adapters) stays. int8: the weights of all linear
    layers, and of experts that are stored as one tensor, are rounded to 255 levels per output channel; the copy
    computes in the policy's dtype with the rounded values (`int8_rounded`). That is weight-only quantisation without
    its kernels: the numbers of int8, not its speed or memory. Not rounded, as in the usual recipes: embedding, output
    head, norms, biases, routers, adapters and all activations.
    """

    def __init__(self, policy: PreTrainedModel, dtype: str) -> None:
        """`dtype`: float32, bfloat16, float16 or int8."""
        self._source, own = policy, policy.dtype
        self.policy: PreTrainedModel = copy.deepcopy(policy).requires_grad_(False)
        self._rounded = dict(quantised(self.policy)) if dtype == "int8" else {}
        if dtype != "int8":
            cast(self.policy, own, DTYPES[dtype])
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the policy's weights as they are now."""
        for (name, mine), theirs in zip(self.policy.named_parameters(), self._source.parameters(), strict=True):
            if name in self._rounded:
                mine.copy_(int8_rounded(theirs, self._rounded[name]))
            else:
                mine.copy_(theirs)


def cast(model: nn.Module, old: torch.dtype, new: torch.dtype) -> None:
    """Casts every weight of one dtype to another, in place; buffers keep theirs, as when a model is loaded so."""
    for parameter in model.parameters():
        if parameter.dtype == old:
            parameter.data = parameter.data.to(new)


def int8_rounded(weight: Float[Tensor, "..."], inputs: int = -1) -> Float[Tensor, "..."]:
    """q s with s = max |w| / 127 over the input dimension and q = round(w / s), in float32.

    Symmetric absmax rounding per output channel; |q s - w| <= s / 2.
    """
    w = weight.float()
    scale = w.abs().amax(dim=inputs, keepdim=True) / LEVELS
    return torch.where(scale > 0, (w / scale).round() * scale, w)


def quantised(policy: PreTrainedModel) -> Iterator[tuple[str, int]]:
    """Names of the weights that int8 rounds, with the dimension over which each one's output channels are summed."""
    head: Any = policy.get_output_embeddings()
    for place, module in policy.named_modules():
        if module is head or "lora_" in place:
            continue
        for name, weight in module.named_parameters(prefix=place, recurse=False):
            if isinstance(module, nn.Linear) and weight.dim() == 2:
                yield name, -1
            elif weight.dim() == 3:  # experts: [E, out, in], or [E, in, out]
                yield name, -2 if getattr(module, "is_transposed", False) else -1
