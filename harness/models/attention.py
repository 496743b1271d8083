"""Attention for CPU: plain products over grouped heads, without copies of the keys and values that heads share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.core.shapes import Bool, Float, Tensor

NAME = "grouped_products"
MAX_SCORES = 1 << 18  # query x key positions of a row; beyond, the fused kernel's memory matters more than its speed
ELSEWHERE = ("sliding_window", "softcap", "s_aux")  # arguments that only the model's own implementation understands


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "b h T d"],
    key: Float[Tensor, "b k S d"],
    value: Float[Tensor, "b k S d"],
    attention_mask: Bool[Tensor, "b 1 T S"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b T h d"], None]:
    """softmax(scaling q k' + mask) v in float32, each key serving the h/k query heads of its group."""
    rows, heads, length, size = query.shape
    kv, width = key.shape[1], key.shape[2]
    if dropout or length * width > MAX_SCORES or any(kwargs.get(name) is not None for name in ELSEWHERE):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, kv, heads // kv * length, size)
    scores = (grouped @ key.transpose(-1, -2)).view(rows, kv, heads // kv, length, width).float()
    if attention_mask is None and length > 1:
        attention_mask = torch.ones(1, 1, length, width, dtype=torch.bool, device=query.device).tril(width - length)
    if attention_mask is not None:
        # The lowest finite number: a padding position that may see nothing must not become NaN.
        scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(value.dtype).view(rows, kv, heads // kv * length, width)
    return (weights @ value).reshape(rows, heads, length, size).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
