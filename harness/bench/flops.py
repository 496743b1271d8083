"""Useful floating-point operations of an update, and the rate at which this machine multiplies matrices.

What an update needs at least, whatever the program does. Siblings share their prompt, so the distinct positions of a
group are p + sum_i (n_i - 1) for a prompt of p tokens and responses of n_i: the last token of a response is never an
input. Of these, 1 + sum_i (n_i - 1) predict response tokens.

    forward = 2 M x positions + 2 V h x predicting positions + 4 a l x (keys that the positions attend to)
    forward + backward = 3 x forward

with M the weights of the decoder's linear layers, V the vocabulary, h the hidden size, a = heads x head size, l layers.
Embedding, normalisation, softmax and optimizer count nothing, and nor does computing anything twice. Groups whose
rewards are all equal need no update and count nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZE, SECONDS = 2048, 2.0  # of the matrices whose product is timed, and how long


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the formula needs to know of a model."""

    linear: int  # M
    vocabulary: int
    hidden: int
    attention: int  # heads x head size
    layers: int


def shape_of(model: PreTrainedModel) -> Shape:
    """Counted on the model itself."""
    from torch import nn

    config: Any = model.config.get_text_config()
    head = model.get_output_embeddings()
    layers = [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear) and m is not head]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linear=sum(m.weight.numel() for m in layers),
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        attention=config.num_attention_heads * size,
        layers=config.num_hidden_layers,
    )


def useful_flops(shape: Shape, groups: Sequence[tuple[int, Sequence[int]]]) -> float:
    """Forward and backward of groups (prompt length, response lengths)."""
    positions = predicting = keys = 0
    for prompt, lengths in groups:
        positions += prompt + sum(n - 1 for n in lengths)
        predicting += 1 + sum(n - 1 for n in lengths)
        keys += prompt * (prompt + 1) // 2
        keys += sum((n - 1) * prompt + (n - 1) * n // 2 for n in lengths)
    forward = (
        2 * shape.linear * positions
        + 2 * shape.vocabulary * shape.hidden * predicting
        + 4 * shape.attention * shape.layers * keys
    )
    return 3.0 * forward


def matmul_peak(dtype: str) -> float:
    """Best rate over repeated products of two square matrices, operations per second, with torch's thread count."""
    import torch

    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    a, b = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
    torch.mm(a, b)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2.0 * SIZE**3 / best
