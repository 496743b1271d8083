"""Tries a model on this machine: seconds of one forward and backward per dtype. Prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models.load import load
from harness.models.response_logits import token_logps

ROWS, WIDTH, PROMPT = 4, 96, 32  # the shape of a small micro-batch


def seconds(model: ModelSpec, device: str, dtype: str) -> tuple[float, int]:
    """(best of two timed forward-backward passes after a warm-up, parameters)."""
    loaded = load(model, seed=0, device=device, dtype=dtype)
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
    return best, loaded.parameters


def main() -> int:
    """`python -m harness.models.measure '{"name": ...}'`"""
    model = ModelSpec.model_validate_json(sys.argv[1])
    num_gpus = torch.cuda.device_count()
    device = "cuda" if num_gpus else "cpu"
    try:
        timed = {dtype: seconds(model, device, dtype) for dtype in ("float32", "bfloat16")}
    except UsageError as error:
        sys.stdout.write(json.dumps([error.what, error.why, error.instead]) + "\n")
        return error.exit_code
    facts: dict[str, Any] = {
        "seconds": {dtype: s for dtype, (s, _) in timed.items()},
        "parameters": timed["float32"][1],
        "num_gpus": num_gpus,
        "shape": [ROWS, WIDTH],
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
