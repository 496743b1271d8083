"""Gates of a mixture-of-experts router, free or with replayed experts: the mathematics of Routing Replay.

Replay fixes which experts a token goes to; the gate values come from the live logits, so the router keeps receiving
gradient, but only through the replayed experts. Source: GSPO section 5.3; verl's router replay (Megatron's gates).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from harness.core.shapes import Bool, Float, Int, Tensor

Score = Literal["softmax_post", "softmax_pre", "sigmoid"]
INDEX = torch.int16  # of a kept expert
UNKNOWN = -1  # where none was recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One router call: what a layer makes of N tokens by itself."""

    layer: int  # counted over the layers that have a router
    logits: Float[Tensor, "N E"]
    experts: Int[Tensor, "N k"]


class Pass(Protocol):
    """What a forward does with routing."""

    @property
    def own_gates(self) -> bool:
        """Whether the gates are computed by `gates`; else the router's own output stands, bit by bit."""

    def route(self, chosen: Chosen) -> Int[Tensor, "N k"]:
        """Takes note of a natural choice; returns the experts to use."""

    def again(self) -> Pass | None:
        """For activations that are recomputed: the same routes, and nothing is noted twice."""


class RouterSet(Protocol):
    """The routers of a policy; all layers have as many experts and choose as many."""

    num_layers: int
    num_experts: int
    top_k: int

    def under(self, this: Pass | None) -> AbstractContextManager[None]:
        """Forwards inside follow `this`."""

    def recompute(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For a checkpointed layer: contexts of its forward, and of the same forward in the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Where each token goes."""

    gates: Float[Tensor, "N E"]  # 0 for experts that are not used
    used: Bool[Tensor, "N E"]
    experts: Int[Tensor, "N k"]  # best first; what a replay records


def gates(
    logits: Float[Tensor, "N E"],
    experts: Int[Tensor, "N k"],
    score: Score,
    *,
    normalise: bool = True,
    scale: float | None = None,
    eps: float = 1e-20,
) -> Float[Tensor, "N k"]:
    """Gates of the given experts from the live logits, in the type of the logits.

    softmax_post: softmax over the chosen logits. softmax_pre: softmax over all logits, so that every logit receives
    gradient. sigmoid: chosen sigmoids, over their sum + eps where they are normalised (k > 1). Computed in float32, as
    routers are, and multiplied by `scale`.
    """
    chosen = _scores(logits, score).gather(1, experts)
    if score == "softmax_post":
        chosen = chosen.softmax(-1, dtype=torch.float32).to(logits.dtype)
    elif score == "sigmoid" and normalise and experts.shape[1] > 1:
        chosen = chosen / (chosen.sum(-1, keepdim=True) + eps)
    return chosen if scale is None else chosen * scale


def route(
    logits: Float[Tensor, "N E"],
    k: int,
    score: Score,
    *,
    replay: Int[Tensor, "N k"] | None = None,
    bias: Float[Tensor, "E"] | None = None,
    scale: float | None = None,
    eps: float = 1e-20,
) -> Routes:
    """Top-k gates of N tokens over E experts; with `replay`, the gates of those experts instead.

    `bias` shifts the choice of a sigmoid router only.
    """
    experts = replay
    if experts is None:
        ranked = _scores(logits, score)
        experts = (ranked if bias is None or score != "sigmoid" else ranked + bias).topk(k, dim=1).indices
    used = torch.zeros_like(logits, dtype=torch.bool).scatter(1, experts, True)
    chosen = gates(logits, experts, score, scale=scale, eps=eps)
    return Routes(gates=torch.zeros_like(logits).scatter(1, experts, chosen), used=used, experts=experts)


def _scores(logits: Float[Tensor, "N E"], score: Score) -> Float[Tensor, "N E"]:
    match score:
        case "softmax_post":
            return logits
        case "softmax_pre":
            return logits.softmax(-1, dtype=torch.float32).to(logits.dtype)
        case "sigmoid":
            return logits.float().sigmoid().to(logits.dtype)


@dataclass(slots=True)
class _Seen:
    """The natural choices of one forward, which are used as they are."""

    own_gates: bool = False
    layers: list[Tensor] = field(default_factory=list)

    def route(self, chosen: Chosen) -> Int[Tensor, "N k"]:
        self.layers.append(chosen.experts.to(INDEX))
        return chosen.experts

    def again(self) -> Pass | None:
        return None


class Watched:
    """Routes of a model's last forward."""

    def __init__(self, routers: RouterSet) -> None:
        self.routers = routers
        self.last: Tensor = torch.empty(0, dtype=INDEX)  # [tokens, layers, k], flat as the forward's input

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watches the one forward inside."""
        seen = _Seen()
        with self.routers.under(seen):
            yield
        self.last = torch.stack(seen.layers, dim=1)


def new_experts(chosen: Int[Tensor, "... k"], before: Int[Tensor, "... k"]) -> Int[Tensor, "..."]:
    """k - |chosen & before|, in whatever order they are."""
    kept = (chosen[..., :, None] == before[..., None, :]).any(-1).sum(-1)
    return chosen.shape[-1] - kept


def extended(known: Tensor | None, found: Tensor | None) -> Tensor | None:
    """Routes as each token took them when it was read first; what continues a text reads its beginning again."""
    if known is None or found is None:
        return found
    return torch.cat([known, found[len(known) :]])


def changed_tokens(a: Bool[Tensor, "N E"], b: Bool[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Share of tokens whose set of experts differs."""
    return (a != b).any(-1).to(torch.get_default_dtype()).mean()
