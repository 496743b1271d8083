"""Routes of a rollout batch as data: what trainer and monitor both read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from harness.core.algorithm import Replay
from harness.core.routing import INDEX, UNKNOWN, RouterSet
from harness.core.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What is known of the routes of B rows over L positions; -1 where nothing is."""

    experts: Int[Tensor, "B L layers k"]
    margins: Float[Tensor, "B L layers"]  # logit of the last expert chosen - that of the next one; NaN where unknown

    @property
    def bytes_per_token(self) -> int:
        """Of a replay: layers x k x the size of an index."""
        return self.experts[0, 0].numel() * self.experts.element_size()


def empty_book(shape: tuple[int, int], routers: RouterSet, device: torch.device) -> Book:
    """Nothing is known."""
    layers = routers.num_layers
    return Book(
        experts=torch.full((*shape, layers, routers.top_k), UNKNOWN, dtype=INDEX, device=device),
        margins=torch.full((*shape, layers), torch.nan, device=device),
    )


@dataclass(slots=True, kw_only=True)
class Changes:
    """Natural choices that differ from earlier ones, over the response tokens that were compared."""

    slots: Tensor  # [layers] (token, slot) pairs whose expert is not among the earlier ones
    tokens: Tensor  # [layers] tokens with any such slot
    anywhere: int = 0  # tokens with any such slot in any layer
    compared: int = 0  # tokens

    @classmethod
    def none(cls, layers: int) -> Changes:
        return cls(slots=torch.zeros(layers), tokens=torch.zeros(layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRoutes:
    """The routes of B rows of L positions under a replay mode."""

    mode: Replay
    num_experts: int
    top_k: int
    starts: Int[Tensor, "B"]  # tokens of each row's prompt
    ends: Int[Tensor, "B"]  # of prompt and response together
    response: Bool[Tensor, "B L"]  # response tokens that the policy produced and that are read
    sampled: Book | None  # the sampler's choices
    old: Book  # the trainer's natural ones under the old weights
    between: list[Changes] = field(default_factory=list)  # old against new policy, by optimizer step


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSeen:
    """Fixed tokens of a run: shares of (token, slot) pairs whose expert is new, by layer."""

    step: Float[Tensor, "layers"]  # by one optimizer step
    since_start: Float[Tensor, "layers"]  # before that step, since the initial policy
