"""Prefill and single steps with the library's own cache: for every decoder that transformers can run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from harness.core.errors import UsageError
from harness.core.routing import Watched
from harness.core.shapes import Bool, Float, Int, Tensor


class Decoder(Protocol):
    """A model with the state of the responses under way, one line of the batch each."""

    prompt_routes: list[Tensor]  # of the prompts admitted last, [T, layers, k] each; empty where nobody watches

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "A V"]:
        """Appends `copies[i]` lines that begin with prompt i, read once; their next-token logits."""

    def keep(self, index: Int[Tensor, "L"]) -> None:
        """Line i becomes what line `index[i]` was; the others are dropped."""

    def step(self, tokens: Int[Tensor, "L"], alive: Bool[Tensor, "L"]) -> Float[Tensor, "L V"]:
        """Appends one token to each line; the logits after it (anything where a line is not alive)."""


class Prefilled(NamedTuple):
    """What one forward over P left-padded prompts gives."""

    logits: Tensor  # [P, V], after the last token
    cache: DynamicCache
    mask: Tensor  # [P, width], 1 = token
    routes: list[Tensor]  # [T, layers, k] of each prompt, where the experts are watched


class Forward:
    """Calls a model with the arguments that it takes."""

    def __init__(self, policy: PreTrainedModel, pad_id: int, watched: Watched | None = None) -> None:
        self.policy, self._pad, self.watched = policy, pad_id, watched
        self._accepted = inspect.signature(policy.forward).parameters
        if "past_key_values" not in self._accepted:
            raise UsageError(
                f"sampling from {type(policy).__name__}",
                "it takes no past_key_values, so there is no cache from which siblings could share their prompt",
                "another model, or another --sampler",
            )

    def __call__(self, ids: Tensor, position: Tensor, cache: DynamicCache, mask: Tensor | None, last: bool) -> Tensor:
        """Logits of the last position; `last`: no others are needed."""
        extras: dict[str, Any] = {}
        if last and "logits_to_keep" in self._accepted:
            extras["logits_to_keep"] = 1
        if "position_ids" in self._accepted:
            extras["position_ids"] = position
        with nullcontext() if self.watched is None else self.watched.forward():
            output = self.policy(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extras)
        logits: Tensor = output.logits[:, -1]
        return logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Prefilled:
        """One forward over all prompts, padded on the left to the longest."""
        device = self.policy.device
        width = max(len(p) for p in prompts)
        ids = torch.full((len(prompts), width), self._pad)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.policy.config)
        logits = self(ids, position, cache, mask, last=True)
        if self.watched is None:
            return Prefilled(logits, cache, mask, [])
        routes = self.watched.last.unflatten(0, tuple(ids.shape))
        return Prefilled(logits, cache, mask, [r[width - len(p) :] for r, p in zip(routes, prompts, strict=True)])


class LibraryDecoder:
    """Any cache, sliding windows and recurrent states included: all lines begin together and have one width."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.prompt_routes: list[Tensor] = []

    def admit(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Float[Tensor, "A V"]:
        logits, self._cache, mask, self.prompt_routes = self._forward.prefill(prompts)
        index = siblings(copies, logits.device)
        self._mask = mask
        self._position = mask.sum(-1)
        self.keep(index)
        return logits[index]

    def keep(self, index: Int[Tensor, "L"]) -> None:
        for layer in self._cache.layers:
            layer.reorder_cache(index)
        self._mask, self._position = self._mask[index], self._position[index]

    def step(self, tokens: Int[Tensor, "L"], alive: Bool[Tensor, "L"]) -> Float[Tensor, "L V"]:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._forward(tokens[:, None], self._position[:, None], self._cache, self._mask, last=False)
        self._position = self._position + 1
        return logits


def siblings(copies: Sequence[int], device: torch.device) -> Int[Tensor, "A"]:
    """Prompt of each line: 0 `copies[0]` times, then 1, ..."""
    return torch.repeat_interleave(torch.arange(len(copies)), torch.tensor(copies)).to(device)
