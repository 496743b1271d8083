"""Faster kernels lent to a model while it samples: attention without copied heads, linear layers packed for the CPU."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.core.shapes import Tensor

Attention = Literal["harness_same_bits", "harness_grouped"]
PACKED_FROM = 2**16  # numbers in a weight matrix; smaller ones do not repay the packing
PACKED_LIMIT = 2**33  # bytes of all packed copies together
ROWS_EXPECTED = 64  # tokens per call that the packed layout is chosen for


_library: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward


def _one_token(query: Tensor, key: Tensor, extras: dict[str, Any]) -> bool:
    """Whether this is a step of plain grouped-query attention, one token per row."""
    plain = extras.get("position_bias") is None and not extras.get("output_attentions")
    return plain and query.shape[2] == 1 and query.shape[1] > key.shape[1]


def _same_bits(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **extras: Any
) -> tuple[Tensor, None]:
    """The library's result bit by bit: torch's CPU kernel reads shared heads in place instead of from copies."""
    if query.device.type != "cpu" or not _one_token(query, key, extras):
        return _library(module, query, key, value, attention_mask, **extras)
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=extras.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def _grouped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **extras: Any
) -> tuple[Tensor, None]:
    """The query heads that share a key head stand as rows of one query: equal but for the order of additions."""
    if not _one_token(query, key, extras):
        return _library(module, query, key, value, attention_mask, **extras)
    rows, heads, _, width = query.shape
    shared = query.reshape(rows, key.shape[1], -1, width)
    out = nn.functional.scaled_dot_product_attention(
        shared, key, value, attn_mask=attention_mask, scale=extras.get("scaling")
    )
    return out.reshape(rows, 1, heads, value.shape[-1]), None


_ATTENTION: dict[Attention, Callable[..., tuple[Tensor, None]]] = {
    "harness_same_bits": _same_bits,
    "harness_grouped": _grouped,
}
for _name, _function in _ATTENTION.items():
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


@contextmanager
def attention(policy: PreTrainedModel, name: Attention) -> Iterator[None]:
    """The model's `sdpa` attention replaced by a registered function, until the context ends."""
    config = policy.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def packed_linears(policy: PreTrainedModel) -> Iterator[None]:
    """Large linear layers compute from a copy of their weights in oneDNN's blocked layout, until the context ends.

    Without it every call lays the weights out anew. The copies are made of the weights as they are now; nothing is
    done where the layout is unknown, or its copies would need more than PACKED_LIMIT bytes.
    """
    layers = [m for m in policy.modules() if type(m) is nn.Linear and "forward" not in vars(m) and _repays(m.weight)]
    if sum(m.weight.numel() * m.weight.element_size() for m in layers) > PACKED_LIMIT:
        layers = []
    try:
        for layer in layers:
            layer.forward = _packed(layer)  # type: ignore[assignment,method-assign]
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def held_head(policy: PreTrainedModel) -> AbstractContextManager[None]:
    """A head that computes in another precision than its weights keeps their cast values, until the context ends."""
    holding: Callable[[], AbstractContextManager[None]] = getattr(
        policy.get_output_embeddings(), "holding", nullcontext
    )
    return holding()


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor's kernels have a packed layout for matrices of `dtype`."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _repays(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.numel() >= PACKED_FROM and can_pack(weight.dtype)


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS_EXPECTED)
    bias = None if layer.bias is None else layer.bias.detach()
    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(input: Tensor) -> Tensor:
        output: Tensor = linear(input, weight, bias, "none", [], "")
        return output

    return forward
