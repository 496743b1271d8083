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

    softmax_post: softmax over the chosen logits. softmax_pre: softmax over all logits, then the choice, so that every
    logit receives gradient. sigmoid: chosen sigmoids over their sum + eps (k > 1); `bias` shifts the choice only.
    Computed in float32, as routers are; gates are returned in the type of the logits and multiplied by `scale`.
    """
    all_scores = _scores(logits, score)
    experts = replay
    if experts is None:
        ranked = all_scores if bias is None or score != "sigmoid" else all_scores + bias
        experts = ranked.topk(k, dim=1).indices
    chosen = all_scores.gather(1, experts)
    if score == "softmax_post":
        chosen = chosen.softmax(-1, dtype=torch.float32).to(logits.dtype)
    elif score == "sigmoid" and k > 1:
        chosen = chosen / (chosen.sum(-1, keepdim=True) + eps)
    if scale is not None:
        chosen = chosen * scale
    used = torch.zeros_like(logits, dtype=torch.bool).scatter(1, experts, True)
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
