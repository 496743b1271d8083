"""Which experts the tokens of responses went to: for replays, and for comparing engine and trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.core.routing import INDEX, RouterSet
from harness.core.shapes import Bool, Int, Tensor


class RouteTrace:
    """Routes of prompts and responses, in the order in which the responses were begun."""

    def __init__(self, responses: int, limit: int, routers: RouterSet, device: torch.device) -> None:
        shape = (responses, limit + 1, routers.num_layers, routers.top_k)  # the last column takes what does not count
        self._limit = limit
        self._tokens = torch.zeros(shape, dtype=INDEX, device=device)
        self._prompts: list[Tensor] = []

    def prompts(self, routes: Sequence[Tensor], copies: Sequence[int]) -> None:
        """Those [T, layers, k] of prompts that were just read, each for `copies[i]` responses."""
        self._prompts += [r for r, n in zip(routes, copies, strict=True) for _ in range(n)]

    def step(
        self, rows: Int[Tensor, "L"], at: Int[Tensor, "L"], alive: Bool[Tensor, "L"], routes: Int[Tensor, "L layers k"]
    ) -> None:
        """Those of one token per line; `at` is its number in the response of row `rows`."""
        self._tokens[rows, torch.where(alive, at, self._limit)] = routes

    def of(self, row: int, length: int) -> Int[Tensor, "T layers k"]:
        """Prompt and response without its last token, which was never read."""
        return torch.cat([self._prompts[row], self._tokens[row, : max(0, length - 1)]]).cpu()
