"""What the shared objective costs against the same formula written inline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from algorithms.arms import build_arm
from harness.core.shapes import Bool, Float, Tensor
from harness.train.objective import batch_totals, policy_loss

ROWS, WIDTH, REPEATS = 512, 1024, 7


def inline_grpo(
    logp: Float[Tensor, "B T"], old: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """GRPO's clipped loss as one would write it by hand, with the same guard, masking and denominators."""
    zero = torch.zeros(())
    ratio = torch.where(mask, logp - old, zero).clamp(-20.0, 20.0).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 0.2, 1 + 0.27))
    lengths = mask.sum(-1)
    per_row = torch.where(mask, loss, zero).sum(-1) / lengths.clamp(min=1)
    return per_row.sum() / (lengths > 0).sum()


def loss_cost(threads: int) -> dict[str, Any]:
    """Loss and backward for 512 responses x 1024 tokens: ours against inline, in turn; medians and their ratio."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(WIDTH)[None, :] < torch.randint(1, WIDTH + 1, (ROWS, 1), generator=generator)
    old = torch.randn(ROWS, WIDTH, generator=generator)
    logp = (old + 0.2 * torch.randn(ROWS, WIDTH, generator=generator)).requires_grad_()
    advantages = torch.where(mask, torch.randn(ROWS, 1, generator=generator).expand(ROWS, WIDTH), torch.zeros(()))
    algorithm = build_arm("grpo")
    totals = batch_totals(mask)

    def ours() -> Tensor:
        return policy_loss(
            algorithm,
            logp=logp,
            old_logp=old,
            ref_logp=None,
            entropy=None,
            advantages=advantages,
            mask=mask,
            totals=totals,
        ).loss

    def inline() -> Tensor:
        return inline_grpo(logp, old, advantages, mask)

    def seconds(loss: Callable[[], Tensor]) -> float:
        logp.grad = None
        start = time.perf_counter()
        loss().backward()
        return time.perf_counter() - start

    assert torch.allclose(ours(), inline(), rtol=1e-5)
    seconds(ours), seconds(inline)
    pairs = [(seconds(ours), seconds(inline)) for _ in range(REPEATS)]
    return {
        "ours_ms": 1000 * statistics.median(a for a, _ in pairs),
        "inline_ms": 1000 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }
