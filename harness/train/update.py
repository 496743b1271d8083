"""One rollout batch -> several optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.core.algorithm import Algorithm
from harness.core.randomness import permutation
from harness.core.shapes import Float, Tensor
from harness.core.types import BatchTotals, LossOutput, UpdateTrace
from harness.train.critic import CriticStep, critic_step
from harness.train.networks import (
    MicroBatch,
    Networks,
    SharedPrompts,
    blocks,
    no_grad_logps,
    policy_logps,
    run_prompts,
)
from harness.train.objective import batch_totals, micro_totals, policy_loss, ratio_base, rollout_weights
from harness.train.optimizer import Optimizer, OptimizerStep
from harness.train.prepare import Prepared
from harness.train.routes import Follow, Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizers:
    """One per trained network."""

    policy: Optimizer
    critic: Optimizer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates of this rollout step."""

    policy: float
    critic: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Row indices of each optimizer step, in order, and which of them are the first pass."""

    mini_batches: tuple[tuple[int, ...], ...]
    first_epoch: int  # number of mini-batches in epoch 0


def plan_updates(prepared: Prepared, algorithm: Algorithm, key: tuple[int, ...]) -> Plan:
    """Splits whole groups into mini-batches, newly shuffled in every epoch by `key`."""
    groups = prepared.batch.group.tolist()
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    names = sorted(rows_of)
    found: list[tuple[int, ...]] = []
    first = 0
    for epoch in range(algorithm.updates.epochs):
        order = permutation((*key, epoch), len(names))
        chunks = [c for c in np.array_split(order, algorithm.updates.mini_batches) if len(c)]
        found.extend(tuple(r for g in chunk for r in rows_of[names[int(g)]]) for chunk in chunks)
        first = first or len(found)
    return Plan(mini_batches=tuple(found), first_epoch=first)


def old_logps(prepared: Prepared, plan: Plan, algorithm: Algorithm, nets: Networks) -> Float[Tensor, "B T"]:
    """Log-probs of the old policy, for the rows that need them.

    The sampler's own, where the algorithm divides by those. Otherwise under the weights at the start of the rollout
    batch. That is the policy which sampled the batch, but for rows that were carried over from an earlier step: theirs
    are computed anew like all others. The first mini-batch is updated under those very weights, so its update forward
    supplies them: with one update per rollout batch there is no extra pass at all, and its ratios are exactly 1.
    Where the trainer's routes are replayed (r2), the pass is made in any case: it records them.
    """
    routing, known = prepared.routing, prepared.old_logp
    if known is None and algorithm.old_logp == "rollout":
        known = prepared.batch.behaviour_logp
    if known is not None and (routing is None or routing.mode != "r2" or routing.recorded):
        return known
    later = {r for rows in plan.mini_batches[int(nets.reuse_forward) : plan.first_epoch] for r in rows}
    wanted = [r for r in trained_rows(prepared, algorithm, nets) if r in later]
    follow = None if routing is None else routing.recording()
    found = no_grad_logps(nets, nets.policy, prepared.rows, wanted, follow)
    return found if known is None else known


def trained_rows(prepared: Prepared, algorithm: Algorithm, nets: Networks) -> list[int]:
    """Rows that can contribute to the gradient: those with an advantage, or every non-empty row.

    The latter under a penalty, where the loss depends on what else is in a micro-batch, and where it is asked for.
    """
    penalised = any(not p.in_reward and p.weight != 0 for p in algorithm.penalties)
    everything = penalised or algorithm.aggregate.per_micro_batch or not nets.skip_rows
    rows = prepared.mask.any(-1) if everything else prepared.contributing
    return [int(i) for i in rows.nonzero()[:, 0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """What the optimizer steps of one mini-batch saw; None where a network made none."""

    policy: UpdateTrace | None
    critic: CriticStep | None


def update(
    prepared: Prepared,
    algorithm: Algorithm,
    nets: Networks,
    optimizers: Optimizers,
    rates: Rates,
    old: Float[Tensor, "B T"],
    plan: Plan,
    *,
    actor_frozen: bool = False,
    width: int,
) -> Iterator[Updated]:
    """Runs the plan; yields what each mini-batch's optimizer steps saw.

    Writes the old log-probs of the first mini-batch into `old`, which the caller hands over for that.
    """
    allowed = set(trained_rows(prepared, algorithm, nets))
    for number, mini in enumerate(plan.mini_batches):
        critic = None
        if nets.critic is not None and optimizers.critic is not None:
            critic = critic_step(prepared, algorithm, nets, optimizers.critic, rates.critic, mini, width)
        if actor_frozen:
            yield Updated(policy=None, critic=critic)
            continue
        rows = [r for r in mini if r in allowed]
        mask = prepared.mask[list(mini)]
        if not bool(mask.any()):
            yield Updated(policy=None, critic=critic)
            continue
        step = _Step(
            totals=batch_totals(
                mask, prepared.batch.group[list(mini)], width=width, rows=int(prepared.counted[list(mini)].sum())
            ),
            place={row: i for i, row in enumerate(mini)},
            rows=rows,
            on_policy=number == 0,
            own_base=number == 0 and nets.reuse_forward,
        )
        trace = _policy_step(prepared, algorithm, nets, optimizers.policy, rates.policy, step, old, critic)
        yield Updated(policy=trace, critic=critic)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    totals: BatchTotals  # of the whole mini-batch
    place: dict[int, int]  # row -> its place in the mini-batch
    rows: Sequence[int]  # that can contribute
    on_policy: bool  # the weights still are those at the start of the rollout batch
    own_base: bool  # so their forward gives the old log-probs too


def _policy_step(
    prepared: Prepared,
    algorithm: Algorithm,
    nets: Networks,
    optimizer: Optimizer,
    lr: float,
    step: _Step,
    old: Float[Tensor, "B T"],
    critic: CriticStep | None,
) -> UpdateTrace:
    optimizer.zero_grad()
    seen: list[_Seen] = []
    todo = list(blocks(prepared.rows, step.rows, nets))
    step = replace(step, totals=replace(step.totals, micro_batches=float(sum(len(b.micros) for b in todo))))
    follow = _follow(prepared.routing, step)
    for block in todo:
        prompts = run_prompts(nets, nets.policy, block, follow)
        for micro in block.micros:
            one = _forward(prepared, algorithm, nets, micro, prompts, step, old, follow)
            (one.output.loss * optimizer.scale).backward()
            if step.own_base:
                old[micro.rows, : one.old.shape[1]] = one.old
            seen.append(one)
        if prompts is not None:
            prompts.backward()
    done = optimizer.step(lr, finite=all(bool(s.output.finite) for s in seen))
    if done.overflow:
        if prepared.routing is not None and not step.own_base:
            prepared.routing.between.pop()  # compared again
        return _policy_step(prepared, algorithm, nets, optimizer, lr, step, old, critic)
    return _trace(prepared, algorithm, seen, done, step.on_policy, critic)


def _follow(routing: Routing | None, step: _Step) -> Follow | None:
    """Forwards under the old weights record, those of later optimizer steps replay or compare."""
    if routing is None:
        return None
    return routing.recording() if step.own_base else routing.updating()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    micro: MicroBatch
    logp: Tensor
    old: Tensor
    base: Tensor  # what the ratio divided by: the old log-probs with the noise put into them
    output: LossOutput


def _forward(
    prepared: Prepared,
    algorithm: Algorithm,
    nets: Networks,
    micro: MicroBatch,
    prompts: SharedPrompts | None,
    step: _Step,
    old: Float[Tensor, "B T"],
    follow: Follow | None,
) -> _Seen:
    width = micro.mask.shape[1]
    places = torch.tensor([step.place[r] for r in micro.rows.tolist()], device=micro.mask.device)
    needs_entropy = "entropy" in algorithm.needs
    logp, entropy = policy_logps(nets, nets.policy, micro, prompts, with_entropy=needs_entropy, follow=follow)
    behaviour = prepared.batch.behaviour_logp[micro.rows, :width]
    old_part = ratio_base(algorithm, logp.detach() if step.own_base else old[micro.rows, :width], behaviour)
    base = old_part if prepared.noise is None else old_part + prepared.noise[micro.rows, :width]
    output = policy_loss(
        algorithm,
        logp=logp,
        old_logp=base,
        ref_logp=None if prepared.ref_logp is None else prepared.ref_logp[micro.rows, :width],
        entropy=entropy,
        advantages=prepared.advantages.advantages[micro.rows, :width],
        mask=micro.mask,
        totals=micro_totals(step.totals, places),
        weights=rollout_weights(algorithm, old_part, behaviour, micro.mask),
    )
    return _Seen(micro=micro, logp=logp.detach(), old=old_part, base=base, output=output)


def _trace(
    prepared: Prepared,
    algorithm: Algorithm,
    seen: Sequence[_Seen],
    done: OptimizerStep,
    on_policy: bool,
    critic: CriticStep | None,
) -> UpdateTrace:
    width = max((s.micro.mask.shape[1] for s in seen), default=0)

    def joined(parts: list[Tensor], like: torch.dtype) -> Tensor:
        if not parts:
            return torch.zeros(0, width, dtype=like)
        return torch.cat([torch.nn.functional.pad(p.detach(), (0, width - p.shape[1])) for p in parts])

    behaviour = [prepared.batch.behaviour_logp[s.micro.rows, : s.micro.mask.shape[1]] for s in seen]
    names = seen[0].output.penalties if seen else {}
    return UpdateTrace(
        logp=joined([s.logp for s in seen], torch.float32),
        old_logp=joined([s.base for s in seen], torch.float32),
        behaviour_logp=joined(behaviour, torch.float32),
        mask=joined([s.micro.mask for s in seen], torch.bool),
        clipped_low=joined([s.output.clipped_low for s in seen], torch.bool),
        clipped_high=joined([s.output.clipped_high for s in seen], torch.bool),
        outside=joined([s.output.outside for s in seen], torch.bool),
        loss=sum(float(s.output.loss.detach()) if bool(s.output.finite) else math.nan for s in seen),
        penalties={n: sum(float(s.output.penalties[n]) for s in seen) for n in names},
        grad_norm=done.grad_norm,
        grad_clipped=done.clipped,
        critic=None if critic is None else critic.metrics(),
        on_policy=on_policy,
        nonfinite=0 if done.finite else 1,
        has_clip=algorithm.surrogate.clips,
        undisturbed=None if prepared.noise is None else joined([s.old for s in seen], torch.float32),
        fresh=torch.cat([prepared.batch.fresh[s.micro.rows] for s in seen]) if seen else None,
    )
