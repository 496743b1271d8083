"""Single steps with a KV cache that is allocated once: a response is a slot, written in place at its own column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from harness.backends.samplers.decoders import Forward, siblings
from harness.core.shapes import Bool, Float, Int, Tensor

PREFILL_TOKENS = 8192  # of one forward, where prompts are read one length at a time


def fits_slots(policy: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier tokens, by an attention function that takes a mask as it is."""
    config = policy.config.get_text_config(decoder=True)
    return (
        config._attn_implementation == "sdpa"
        and bool(getattr(policy, "_supports_attention_backend", False))
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=policy.config).layers)
    )


@dataclass(slots=True)
class _View:
    """The part of the slots that the step under way reads and writes; shared by all layers."""

    lines: int = 0
    width: int = 0
    column: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # [lines], written to
    places: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def place(self, heads: int, capacity: int) -> Int[Tensor, "N"]:
        """Index of each (line, head) at its column, where slots, heads and columns are one dimension."""
        key = (heads, capacity)
        if key not in self.places:
            slot_head = torch.arange(self.lines * heads, device=self.column.device).view(self.lines, heads)
            self.places[key] = (slot_head * capacity + self.column[:, None]).reshape(-1)
        return self.places[key]


class _SlotLayer(DynamicLayer):
    """Keys and values [slots, heads, columns, width], zero where nothing was written."""

    def __init__(self, view: _View, slots: int, columns: int) -> None:
        super().__init__()
        self._view, self._slots, self._columns = view, slots, columns

    def put(self, first: int, keys: Tensor, values: Tensor, index: Tensor) -> None:
        """Prompts into the first columns of the slots from `first` on; `index` says which prompt each slot gets."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            shape = (self._slots, keys.shape[1], self._columns)
            self.keys = keys.new_zeros(*shape, keys.shape[3])
            self.values = values.new_zeros(*shape, values.shape[3])
        self.keys[first : first + len(index), :, : keys.shape[2]] = keys[index]
        self.values[first : first + len(index), :, : values.shape[2]] = values[index]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copies the first `width` columns of slots."""
        self.keys[target, :, :width] = self.keys[source, :, :width]
        self.values[target, :, :width] = self.values[source, :, :width]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token per line; everything the lines hold, as views."""
        at = self._view.place(self.keys.shape[1], self._columns)
        self.keys.view(-1, self.keys.shape[3]).index_copy_(0, at, key_states.reshape(-1, self.keys.shape[3]))
        self.values.view(-1, self.values.shape[3]).index_copy_(0, at, value_states.reshape(-1, self.values.shape[3]))
        lines, width = self._view.lines, self._view.width
        return self.keys[:lines, :, :width], self.values[:lines, :, :width]

    def get_seq_length(self) -> int:
        return self._view.width - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How lines and columns stand; no choice changes a distribution, only rounding and speed."""

    lines: int  # the batch is filled up to a multiple of it
    columns: int  # attention sees a multiple of it
    one_length: bool  # prompts are read one length at a time: no padding, and a line's bits do not depend on others


class SlotDecoder:
    """Lines may begin at different times; a line's tokens stand in the columns from its `start` on.

    Memory: 2 x layers x KV heads x head width x slots x columns numbers, taken at the beginning.
    """

    def __init__(self, forward: Forward, layout: Layout, *, slots: int, columns: int) -> None:
        self._forward, self._layout = forward, layout
        self._slots = -(-slots // layout.lines) * layout.lines
        self._columns = -(-columns // layout.columns) * layout.columns
        self._view = _View()
        self._cache: DynamicCache | None = None
        device = forward.policy.device
        self._start = torch.empty(0, dtype=torch.long, device=device)  # [L] first column of each line
        self._column = torch.empty(0, dtype=torch.long, device=device)  # [L] the next one to be written
        self._last: list[int] = []  # the same without asking the device: an upper bound
        self._padded = False
        self.prompt_routes: list[Tensor] = []

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "A V"]:
        self.prompt_routes = []
        parts = [self._admit(prompts[a:b], copies[a:b]) for a, b in self._together(prompts)]
        return torch.cat(parts)

    def keep(self, index: Int[Tensor, "L"]) -> None:
        moved = (index != torch.arange(len(index), device=index.device)).nonzero()[:, 0]
        if len(moved):
            for layer in self._layers:
                if layer.is_initialized:
                    layer.move(index[moved], moved, max(self._last))
        self._start, self._column = self._start[index], self._column[index]
        self._last = [self._last[i] for i in index.tolist()]

    def step(self, tokens: Int[Tensor, "L"], alive: Bool[Tensor, "L"]) -> Float[Tensor, "L V"]:
        lines = len(tokens)
        full = -(-lines // self._layout.lines) * self._layout.lines
        tokens, start, column = (
            torch.nn.functional.pad(x, (0, full - lines)) if full > lines else x
            for x in (tokens, self._start, self._column)
        )
        self._view.lines, self._view.column = full, column
        self._view.width = self._width(max(self._last) + 1)
        self._view.places.clear()
        assert self._cache is not None
        logits = self._forward(
            tokens[:, None], (column - start)[:, None], self._cache, self._mask(start, column), last=False
        )
        self._column = self._column + alive
        self._last = [last + 1 for last in self._last]
        return logits[:lines]

    @property
    def _layers(self) -> list[_SlotLayer]:
        return [] if self._cache is None else self._cache.layers

    def _width(self, needed: int) -> int:
        multiple = self._layout.columns
        return min(-(-needed // multiple) * multiple, self._columns)

    def _mask(self, start: Tensor, column: Tensor) -> Tensor | None:
        """[lines, 1, 1, width], true for the columns of a line up to the one being written; None: all of them."""
        if not self._padded and self._layout.columns == 1:
            return None
        columns = torch.arange(self._view.width, device=column.device)
        mask = columns <= column[:, None]
        if self._padded:
            mask &= columns >= start[:, None]
        return mask[:, None, None]

    def _together(self, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Ranges of prompts that are read in one forward."""
        if not self._layout.one_length:
            yield 0, len(prompts)
            return
        first = 0
        for length, group in groupby(len(p) for p in prompts):
            end = first + len(list(group))
            most = max(1, PREFILL_TOKENS // length)
            for at in range(first, end, most):
                yield at, min(at + most, end)
            first = end

    def _admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        logits, cache, mask, routes = self._forward.prefill(prompts)
        self.prompt_routes += routes
        index = siblings(copies, logits.device)
        if self._cache is None:
            self._cache = DynamicCache(config=self._forward.policy.config)
            self._cache.layers = [_SlotLayer(self._view, self._slots, self._columns) for _ in cache.layers]
        for layer, read in zip(self._layers, cache.layers, strict=True):
            if read.is_initialized:  # a layer may attend to another one's keys
                layer.put(len(self._last), read.keys, read.values, index)
        width = mask.shape[1]
        lengths = torch.tensor([len(p) for p in prompts], device=logits.device)
        self._padded |= min(len(p) for p in prompts) < width
        self._start = torch.cat([self._start, (width - lengths)[index]])
        self._column = torch.cat([self._column, torch.full_like(index, width)])
        self._last += [width] * len(index)
        return logits[index]
