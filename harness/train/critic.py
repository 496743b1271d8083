"""One optimizer step of the critic on the rows of a mini-batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.core.algorithm import Algorithm
from harness.train.networks import Networks, blocks, critic_values, run_prompts
from harness.train.objective import batch_totals, micro_totals, value_loss
from harness.train.optimizer import Optimizer
from harness.train.prepare import Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticStep:
    """What the critic's step saw."""

    loss: float
    clip_frac: float
    grad_norm: float
    finite: bool  # False: loss or gradient was not, and the step was skipped

    def metrics(self) -> Mapping[str, float]:
        return {"loss": self.loss, "clip_frac": self.clip_frac, "grad_norm": self.grad_norm}


def critic_step(
    prepared: Prepared,
    algorithm: Algorithm,
    nets: Networks,
    optimizer: Optimizer,
    lr: float,
    mini: Sequence[int],
    width: int,
) -> CriticStep | None:
    """Clipped value regression on all non-empty rows with a finite reward; None where there are none."""
    batch, returns, values = prepared.batch, prepared.advantages.returns, prepared.values
    plan = algorithm.advantage.critic
    usable = (prepared.mask.any(-1) & prepared.shaped.isfinite()).tolist()
    rows = [r for r in mini if usable[r]]
    if not rows or nets.critic is None or plan is None or returns is None or values is None:
        return None
    totals = batch_totals(prepared.mask[rows], batch.group[rows], width=width)
    place = {row: i for i, row in enumerate(rows)}
    optimizer.zero_grad()
    loss = clipped = 0.0
    for block in blocks(prepared.rows, rows, nets):
        prompts = run_prompts(nets, nets.critic, block)
        for micro in block.micros:
            cut = micro.mask.shape[1]
            part = value_loss(
                vpred=critic_values(nets.critic, micro, prompts),
                values=values[micro.rows, :cut],
                returns=returns[micro.rows, :cut],
                mask=micro.mask,
                totals=micro_totals(totals, torch.tensor([place[r] for r in micro.rows.tolist()])),
                clip=plan.value_clip,
                aggregate=algorithm.aggregate,
            )
            (part.loss * optimizer.scale).backward()
            loss += float(part.loss.detach())
            clipped += float(part.clipped.sum())
        if prompts is not None:
            prompts.backward()
    done = optimizer.step(lr, finite=math.isfinite(loss))
    if done.overflow:
        return critic_step(prepared, algorithm, nets, optimizer, lr, mini, width)
    share = clipped / max(1.0, totals.tokens)
    return CriticStep(loss=loss, clip_frac=share, grad_norm=done.grad_norm, finite=done.finite)
