"""Gates of a mixture-of-experts router, free or with replayed experts: the mathematics of Routing Replay.

Replay fixes which experts a token goes to; the gate values come from the live logits, so the router keeps receiving
gradient, but only through the replayed experts. Source: GSPO section 5.3; verl's router replay (Megatron's gates).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harness.core.shapes import Bool, Float, Int, Tensor

Score = Literal["softmax_post", "softmax_pre", "sigmoid"]


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


def changed_tokens(a: Bool[Tensor, "N E"], b: Bool[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Share of tokens whose set of experts differs."""
    return (a != b).any(-1).to(torch.get_default_dtype()).mean()
