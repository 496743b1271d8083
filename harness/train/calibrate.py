"""Measures the drift of log s before training, for clip ranges given in units of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from harness.core.algorithm import Algorithm
from harness.core.errors import UsageError
from harness.core.masked import row_mean
from harness.core.types import UpdateTrace
from harness.train.loop import Progress, Trainer, one_step


def calibrate(trainer: Trainer, progress: Progress, restore: Callable[[], None]) -> tuple[float, Progress]:
    """SD over rows of log s = mean_t (logp - old_logp), pooled over the optimizer steps after the first.

    One rollout batch is sampled and trained on with the clip off at the run's own learning rate; `restore` then takes
    the weights and optimizers back. The batch's tokens are charged to the budget. Returns (SD in nats, progress with
    the tokens charged).
    """
    loose: Algorithm = trainer.algorithm.model_copy(update={"surrogate": trainer.algorithm.surrogate.unclipped()})
    full_rate = trainer.recipe.warmup  # the fraction at which the warm-up ends
    outcome = one_step(replace(trainer, algorithm=loose, schedule=()), progress, full_rate)
    restore()
    sd = drift_sd(outcome.traces)
    if sd is None:
        raise UsageError(
            f"{trainer.algorithm.name}: a clip range in units of SD(log s)",
            "the calibration batch gave no drift: one update per rollout batch, or no informative group",
            "updates.mini_batches of 2 or more and a task the model sometimes solves, or fixed surrogate.low and .high",
        )
    charged = replace(progress, sampled_tokens=outcome.progress.sampled_tokens, prompts=outcome.progress.prompts)
    return sd, charged


def drift_sd(traces: Sequence[UpdateTrace]) -> float | None:
    """SD over rows of log s, pooled over the optimizer steps after the first; None where nothing moved.

    Steps that were skipped because a number was not finite do not count.
    """
    drifts = [row_mean(t.logp - t.old_logp, t.mask) for t in traces if not t.on_policy and not t.nonfinite]
    pooled = torch.cat(drifts) if drifts else torch.zeros(0)
    sd = float(pooled.std()) if len(pooled) > 1 else 0.0
    return sd if sd > 0 else None
