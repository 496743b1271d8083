"""Tries a model on this machine: seconds of a forward and backward per dtype, what its layers allow. Prints JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models import attention as attentions
from harness.models.load import load
from harness.models.prepare import set_attention
from harness.models.response_logits import token_logps
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


def tried(model: ModelSpec, device: str, dtype: str) -> Tried:
    """Loads and times the model."""
    loaded = load(model, seed=0, device=device, dtype=dtype)
    attention = _set_best_attention(loaded.policy, device)
    ids = torch.randint(0, loaded.policy.config.get_text_config().vocab_size, (ROWS, WIDTH), device=device)
    select = torch.zeros(ROWS, WIDTH, dtype=torch.bool, device=device)
    select[:, PROMPT:-1] = True
    best = float("inf")
    for attempt in range(3):
        start = time.perf_counter()
        logp, _ = token_logps(loaded.policy, ids, select, temperature=1.0)
        logp.sum().backward()
        loaded.policy.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - start)
    return Tried(
        seconds=best,
        parameters=loaded.parameters,
        can_share=can_share(loaded.policy, loaded.pad_id),
        attention=attention,
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
        "num_gpus": num_gpus,
        "shape": [ROWS, WIDTH],
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
