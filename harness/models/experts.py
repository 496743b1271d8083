"""How the experts of a mixture compute: one of the backends of transformers, chosen by measurement.

eager loops over the experts, grouped_mm multiplies tokens sorted by expert in one call, batched_mm copies the weights
of an expert for every token. They agree but for rounding.

The embedded models on one thread of a shared AMD EPYC, torch 2.13, fp32: milliseconds of a forward and backward of
64 x 30 tokens and of one more token of 256 lines, median seconds of a GRPO step of 32 prompts x 8.

            |        tiny-moe         |       tiny-moe-32
            | update   decode   step  | update   decode   step
eager       |     47      5.2    .44  |     94     10.1    .79
grouped_mm  |     45      4.8    .41  |     70      6.4    .56
batched_mm  |    726     38.7    4.0  |    709     41.9    3.2

So it is grouped_mm for both (`tiny_moe.EXPERTS`); other models are tried on the machine that trains them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from harness.core.errors import UsageError
from harness.models.routers import is_moe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKENDS = ("eager", "grouped_mm", "batched_mm")
MAX_COPIES = 1 << 30  # bytes; batched_mm is not tried where its copies of one layer's weights would be more
LINES, NEW = 64, 8  # tokens decoded to time it: lines of a small rollout batch x columns


def set_experts(policy: PreTrainedModel, name: str | None) -> None:
    """Chooses the backend of the experts, in place; None leaves the model's own."""
    if name is None:
        return
    instead = f"{', '.join(BACKENDS)}, or no backend.experts"
    if not is_moe(policy):
        raise UsageError(f"backend.experts = {name!r}", "this model is dense", "no backend.experts")
    if not policy._can_set_experts_implementation():
        raise UsageError(f"backend.experts = {name!r}", "this model has one way to compute its experts", instead)
    try:
        policy.set_experts_implementation(name)
    except (ValueError, ImportError, KeyError) as error:
        raise UsageError(f"backend.experts = {name!r}", str(error).splitlines()[0], instead) from None


def timed_backends(policy: PreTrainedModel, update: Callable[[], object], tokens: int) -> dict[str, dict[str, float]]:
    """Seconds per token of every backend that this model and machine have; leaves the one of the shortest step.

    `update`: forward and backward, which the argument runs for that many tokens. `step`: that and a token decoded with
    a cache, as in training with the transformers sampler. Empty where there is no choice.
    """
    if not is_moe(policy) or not policy._can_set_experts_implementation():
        return {}
    found: dict[str, dict[str, float]] = {}
    for name in BACKENDS:
        if name == "batched_mm" and _copied(policy, tokens) > MAX_COPIES:
            continue
        try:
            set_experts(policy, name)
            updated = best_seconds(update, policy.device) / tokens
            decoded = best_seconds(lambda: _decode(policy), policy.device) / (LINES * NEW)
        except (UsageError, RuntimeError):  # no kernel for this device or dtype, or no memory
            policy.zero_grad(set_to_none=True)
        else:
            found[name] = {"update": updated, "step": updated + decoded}
    if found:
        set_experts(policy, min(found, key=lambda name: found[name]["step"]))
    return found


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The best of two timed calls after a warm-up."""
    best = float("inf")
    for attempt in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best


@torch.no_grad()
def _decode(policy: PreTrainedModel) -> None:
    cache, vocabulary = DynamicCache(config=policy.config), policy.config.get_text_config().vocab_size
    for column in range(NEW):
        ids = (torch.arange(LINES, device=policy.device)[:, None] + column) % vocabulary
        policy(input_ids=ids, past_key_values=cache, use_cache=True)


def _copied(policy: PreTrainedModel, tokens: int) -> int:
    """Bytes of weights that batched_mm copies in a forward and keeps for the backward."""
    each = sum(w[0].numel() * w.element_size() for w in policy.parameters() if w.dim() == 3)
    top_k: int = getattr(policy.config.get_text_config(), "num_experts_per_tok", None) or 1
    return int(each) * tokens * top_k
