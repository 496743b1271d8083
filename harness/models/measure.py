"""Tries a model on this machine: seconds of a forward and backward per dtype, of its experts, what its layers allow.

Prints JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models import attention as attentions
from harness.models.experts import best_seconds, timed_backends
from harness.models.load import load
from harness.models.prepare import set_attention
from harness.models.response_logits import token_logps
from harness.models.routers import routers_of
from harness.models.shared_prompts import can_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, WIDTH, PROMPT = 4, 96, 32  # the shape of a small micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one precision showed."""

    seconds: float  # best of two timed forward-backward passes after a warm-up
    parameters: int
    can_share: bool  # prompts among siblings
    attention: str
    experts: dict[str, dict[str, float]]  # seconds per token of the experts' backends; empty where there is no choice
    moe: dict[str, int] | None


def tried(model: ModelSpec, device: str, dtype: str) -> Tried:
    """Loads and times the model."""
    loaded = load(model, seed=0, device=device, dtype=dtype)
    attention = _set_best_attention(loaded.policy, device)
    ids = torch.randint(0, loaded.policy.config.get_text_config().vocab_size, (ROWS, WIDTH), device=device)
    select = torch.zeros(ROWS, WIDTH, dtype=torch.bool, device=device)
    select[:, PROMPT:-1] = True

    def update() -> None:
        logp, _ = token_logps(loaded.policy, ids, select, temperature=1.0)
        logp.sum().backward()
        loaded.policy.zero_grad(set_to_none=True)

    experts = timed_backends(loaded.policy, update, ROWS * WIDTH)
    routers = routers_of(loaded.policy)
    return Tried(
        seconds=best_seconds(update, loaded.policy.device),
        parameters=loaded.parameters,
        can_share=can_share(loaded.policy, loaded.pad_id),
        attention=attention,
        experts=experts,
        moe=None
        if routers is None
        else {"layers": routers.num_layers, "experts": routers.num_experts, "top_k": routers.top_k},
    )


def _set_best_attention(policy: PreTrainedModel, device: str) -> str:
    """Grouped products on CPU, where the model takes another attention than its own."""
    if device != "cpu":
        return "sdpa"
    try:
        set_attention(policy, attentions.NAME)
    except UsageError:
        return "sdpa"
    return attentions.NAME


def main() -> int:
    """`python -m harness.models.measure '{"name": ...}'`"""
    model = ModelSpec.model_validate_json(sys.argv[1])
    num_gpus = torch.cuda.device_count()
    device = "cuda" if num_gpus else "cpu"
    try:
        timed = {dtype: tried(model, device, dtype) for dtype in ("float32", "bfloat16")}
    except UsageError as error:
        sys.stdout.write(json.dumps([error.what, error.why, error.instead]) + "\n")
        return error.exit_code
    facts: dict[str, Any] = {
        "seconds": {dtype: t.seconds for dtype, t in timed.items()},
        "parameters": timed["float32"].parameters,
        "can_share": all(t.can_share for t in timed.values()),
        "attention": timed["float32"].attention,
        "experts": {dtype: t.experts for dtype, t in timed.items()},
        "moe": timed["float32"].moe,
        "num_gpus": num_gpus,
        "shape": [ROWS, WIDTH],
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
