"""Per-token gradient weights and parameter gradients of several algorithms at the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from harness.core.algorithm import Algorithm
from harness.core.parts import GroupView
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import BatchTotals, LossOutput, RolloutBatch
from harness.microscope.recorded import take_rows
from harness.train.networks import MicroBatch, Networks, Rows, micro_batches, policy_logps
from harness.train.objective import batch_totals, micro_totals, policy_loss, rollout_weights
from harness.train.prepare import Prepared, Recorded, TaskFacts, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An algorithm with the batch as it sees it: admitted groups only, shaped, selected, with advantages."""

    name: str
    algorithm: Algorithm
    rows: Int[Tensor, "b"]  # admitted rows of the recorded batch
    prepared: Prepared | None  # of these rows; None where no group is admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one algorithm does with the recorded batch; zeros in rows it does not admit."""

    arm: Arm
    weight: Float[Tensor, "B T"]  # d loss / d logp
    ratio: Float[Tensor, "B T"]  # as the algorithm defines it; 1 where it is not computed
    clip: Int[Tensor, "B T"]  # 0 no, 1 lower bound, 2 upper bound, 3 dual
    advantages: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]  # of the loss: tokens of admitted rows that are not excluded
    admitted: Bool[Tensor, "B"]
    kept: Bool[Tensor, "B"]
    gradient: tuple[Tensor, ...]  # of the loss, per parameter


def focus(
    name: str,
    algorithm: Algorithm,
    batch: RolloutBatch,
    nets: Networks,
    facts: TaskFacts,
    key: tuple[int, ...],
    *,
    old_logp: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    history: tuple[float, ...] = (),
) -> Arm:
    """Admission and `prepare` on the recorded batch. Nothing is sampled: refused groups are missing, not replaced.

    `history` is what the selection knew before the batch.
    """
    view = GroupView(reward=batch.reward, correct=batch.correct, group=batch.group, num_groups=batch.num_groups)
    rows = algorithm.admission(view)[batch.group].nonzero()[:, 0]
    if not len(rows):
        return Arm(name=name, algorithm=algorithm, rows=rows, prepared=None)
    mine = nets if "reference" in algorithm.needs else replace(nets, reference=None)
    recorded = Recorded(old_logp=old_logp[rows], values=values[rows] if "critic" in algorithm.needs else None)
    prepared = prepare(take_rows(batch, rows), algorithm, mine, facts, key, history, recorded=recorded)
    return Arm(name=name, algorithm=algorithm, rows=rows, prepared=prepared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Derivatives of one loss by its differentiable inputs."""

    weight: Float[Tensor, "B T"]  # d loss / d logp
    entropy_weight: Float[Tensor, "B T"] | None  # d loss / d entropy, where a part uses it
    output: LossOutput


def weigh(
    algorithm: Algorithm,
    *,
    logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"] | None,
    entropy: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    totals: BatchTotals,
    weights: Float[Tensor, "B T"] | None = None,
) -> Weighed:
    """The shared objective's derivative by every log-prob (and entropy), `[B, T]`."""
    leaf = logp.detach().requires_grad_()
    leaves = [leaf] if entropy is None else [leaf, entropy.detach().requires_grad_()]
    output = policy_loss(
        algorithm,
        logp=leaf,
        old_logp=old_logp,
        ref_logp=ref_logp,
        entropy=None if entropy is None else leaves[1],
        advantages=advantages,
        mask=mask,
        totals=totals,
        weights=weights,
    )
    found = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    return Weighed(weight=grads[0], entropy_weight=None if entropy is None else grads[1], output=output)


def look(arms: Sequence[Arm], nets: Networks, rows: Rows, old_logp: Float[Tensor, "B T"], *, width: int) -> list[Sight]:
    """All arms at the policy's present weights: one forward pass per micro-batch, one backward pass per arm.

    The batch is one mini-batch: each arm's denominators count its admitted rows. The critic's loss has no part in it.
    """
    sights = [_empty(arm, nets, rows) for arm in arms]
    params = _parameters(nets)
    wanted = [int(i) for i in rows.mask.any(-1).nonzero()[:, 0]]
    micros = list(micro_batches(rows, wanted, nets.micro_batch_tokens))
    totals = [None if a.prepared is None else _totals(a.prepared, width, len(micros)) for a in arms]
    needs_entropy = any("entropy" in arm.algorithm.needs for arm in arms)
    for micro in micros:
        logp, entropy = policy_logps(nets, nets.policy, micro, with_entropy=needs_entropy)
        for sight, total in zip(sights, totals, strict=True):
            if total is not None:
                _add(sight, total, micro, logp, entropy, old_logp, params)
    return sights


def _totals(prepared: Prepared, width: int, micros: int) -> BatchTotals:
    """Denominators of an arm's whole batch."""
    rows = int(prepared.counted.sum())
    totals = batch_totals(prepared.mask, prepared.batch.group, width=width, rows=rows)
    return replace(totals, micro_batches=float(micros))


def _parameters(nets: Networks) -> list[Tensor]:
    return [p for p in nets.policy.parameters() if p.requires_grad]


def _empty(arm: Arm, nets: Networks, rows: Rows) -> Sight:
    zeros = torch.zeros(rows.mask.shape, device=rows.mask.device)
    admitted, kept = torch.zeros_like(rows.mask[:, 0]), torch.zeros_like(rows.mask[:, 0])
    advantages, mask = zeros.clone(), torch.zeros_like(rows.mask)
    admitted[arm.rows] = True
    if arm.prepared is not None:
        kept[arm.rows] = arm.prepared.kept
        advantages[arm.rows] = arm.prepared.advantages.advantages
        mask[arm.rows] = arm.prepared.mask
    return Sight(
        arm=arm,
        weight=zeros.clone(),
        ratio=torch.ones_like(zeros),
        clip=torch.zeros_like(zeros, dtype=torch.long),
        advantages=advantages,
        mask=mask,
        admitted=admitted,
        kept=kept,
        gradient=tuple(torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in _parameters(nets)),
    )


def _add(
    sight: Sight,
    totals: BatchTotals,
    micro: MicroBatch,
    logp: Float[Tensor, "b T"],
    entropy: Float[Tensor, "b T"] | None,
    old_logp: Float[Tensor, "B U"],
    params: Sequence[Tensor],
) -> None:
    """Adds one micro-batch to what an arm has seen so far."""
    prepared, algorithm = sight.arm.prepared, sight.arm.algorithm
    assert prepared is not None
    place = torch.full((len(old_logp),), -1, device=old_logp.device)
    place[sight.arm.rows] = torch.arange(len(sight.arm.rows), device=old_logp.device)
    here = (place[micro.rows] >= 0).nonzero()[:, 0]
    if not len(here):
        return
    row, local, width = micro.rows[here], place[micro.rows][here], micro.mask.shape[1]
    mask, old = prepared.mask[local, :width], old_logp[row, :width]
    base = old if prepared.noise is None else old + prepared.noise[local, :width]
    uses_entropy = entropy is not None and "entropy" in algorithm.needs
    found = weigh(
        algorithm,
        logp=logp[here],
        old_logp=base,
        ref_logp=None if prepared.ref_logp is None else prepared.ref_logp[local, :width],
        entropy=entropy[here] if entropy is not None and uses_entropy else None,
        advantages=prepared.advantages.advantages[local, :width],
        mask=mask,
        totals=micro_totals(totals, local),
        weights=rollout_weights(algorithm, old, prepared.batch.behaviour_logp[local, :width], mask),
    )
    out = found.output
    sight.weight[row, :width] = found.weight
    sight.ratio[row, :width] = out.ratio
    sight.clip[row, :width] = out.clipped_low * 1 + out.clipped_high * 2 + out.clipped_dual * 3
    into = (found.weight * logp[here]).sum()
    if entropy is not None and found.entropy_weight is not None:
        into = into + (found.entropy_weight * entropy[here]).sum()
    grads = torch.autograd.grad(into, params, retain_graph=True, allow_unused=True)
    for total, grad in zip(sight.gradient, grads, strict=True):
        if grad is not None:
            total.add_(grad)
