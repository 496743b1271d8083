"""The one place where a loss is assembled, for every algorithm and for the critic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from harness.core.algorithm import Algorithm
from harness.core.errors import UsageError
from harness.core.expect import expect_tokens
from harness.core.masked import group_sum, masked, row_mean
from harness.core.parts import Aggregate, ExclusionView, Penalty, PenaltyInput
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import BatchTotals, LossOutput


def batch_totals(
    mask: Bool[Tensor, "B T"],
    group: Int[Tensor, "B"] | None = None,
    width: float | None = None,
    rows: int | None = None,
) -> BatchTotals:
    """Denominators of one mini-batch: its tokens N, rows B, non-empty rows B+, padded width L, tokens per group.

    `rows` replaces B where some rows of the mask do not count.

    Call it on the whole mini-batch, rows of zero advantage included, before any split into micro-batches.
    """
    length = mask.sum(-1)
    totals = BatchTotals(
        tokens=float(length.sum()),
        rows=float(mask.shape[0] if rows is None else rows),
        rows_nonempty=float((length > 0).sum()),
        width=float(mask.shape[1]) if width is None else width,
    )
    if group is None or not len(group):
        return totals
    per_group = group_sum(length.to(torch.get_default_dtype()), group, int(group.max()) + 1)
    return replace(totals, group_tokens=per_group[group], groups=float((per_group > 0).sum()))


def micro_totals(totals: BatchTotals, rows: Tensor | slice) -> BatchTotals:
    """The same denominators, their per-row part restricted to the rows of one micro-batch."""
    return totals if totals.group_tokens is None else replace(totals, group_tokens=totals.group_tokens[rows])


def loss_mask(
    algorithm: Algorithm, mask: Bool[Tensor, "B T"], view: ExclusionView
) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B"]]:
    """The mask without excluded rows, and the rows that still count as responses."""
    counted = torch.ones_like(view.kept)
    for part in algorithm.exclusions:
        out = part(view)
        mask = mask & ~out[:, None]
        counted = counted if part.counted else counted & ~out
    return mask, counted


def policy_loss(
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
) -> LossOutput:
    """loss = agg(w surrogate(ratio, A)) + sum over penalties p of weight_p x agg_p(p), for one micro-batch.

    agg_p is the algorithm's agg unless the penalty names its own.

    Because `totals` belong to the mini-batch, the losses of its micro-batches add up to the mini-batch's.
    `weights` w are those of the rollout correction, constants; None = 1.
    `ref_logp` and `entropy` may be None where no part needs them. Masked positions may hold anything; a number that
    is not finite at any other position leaves `finite` False, and no optimizer step may follow.
    """
    expect_tokens(
        "policy_loss", mask, logp=logp, old_logp=old_logp, ref_logp=ref_logp, entropy=entropy,
        advantages=advantages, weights=weights,
    )  # fmt: skip
    logp, old = masked(logp, mask), masked(old_logp, mask).detach()
    ratio = algorithm.ratio(logp, old, mask)
    given = masked(advantages, mask).detach()
    out = algorithm.surrogate(ratio, given, logp)
    token_loss = out.loss if weights is None else out.loss * masked(weights, mask).detach()
    policy = algorithm.aggregate(token_loss, mask, totals)
    view = PenaltyInput(logp=logp, old_logp=old, ref_logp=ref_logp, entropy=entropy, mask=mask)
    loss, values = policy, {}
    for penalty in algorithm.penalties:
        if penalty.in_reward or not penalty.weight:
            continue
        _given(penalty, view)
        aggregate = algorithm.aggregate if penalty.aggregate is None else penalty.aggregate
        value = aggregate(penalty(view), mask, totals)
        loss = loss + penalty.weight * value
        values[penalty.kind] = value.detach()
    return LossOutput(
        loss=loss,
        policy_loss=policy.detach(),
        penalties=values,
        ratio=ratio.detach(),
        clipped_low=out.low & mask,
        clipped_high=out.high & mask,
        clipped_dual=out.dual & mask,
        outside=out.outside & mask,
        finite=_finite(loss, logp, old, given, None if ref_logp is None else masked(ref_logp, mask)),
    )


def _finite(*parts: Tensor | None) -> Bool[Tensor, ""]:
    """Whether all numbers are finite, by their sum: one NaN or infinity makes it so too.

    The loss alone does not tell: a guard bounds the ratio of an infinite log-prob, and clamps have no gradient at NaN.
    """
    return torch.stack([p.detach().sum().double() for p in parts if p is not None]).sum().isfinite()


def _given(penalty: Penalty, view: PenaltyInput) -> None:
    for need, tensor in (("reference", view.ref_logp), ("entropy", view.entropy)):
        if need in penalty.needs and tensor is None:
            name = "ref_logp" if need == "reference" else need
            raise UsageError(
                f"{name}=None with a penalty {penalty.kind!r}",
                f"the penalty is computed from it (weight {penalty.weight:g})",
                f"{name} of shape {tuple(view.mask.shape)}, or an algorithm without this penalty",
            )


def token_rewards(
    algorithm: Algorithm,
    old_logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"] | None,
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"] | None:
    """-weight x penalty of the old policy, per token: what `in_reward` penalties take; None where there is none."""
    expect_tokens("token_rewards", mask, old_logp=old_logp, ref_logp=ref_logp)
    view = PenaltyInput(logp=old_logp, old_logp=old_logp, ref_logp=ref_logp, entropy=None, mask=mask)
    wanted = [p for p in algorithm.penalties if p.in_reward and p.weight]
    for penalty in wanted:
        _given(penalty, view)
    terms = [-p.weight * masked(p(view), mask) for p in wanted]
    return torch.stack(terms).sum(0).detach() if terms else None


def rollout_weights(
    algorithm: Algorithm,
    old_logp: Float[Tensor, "B T"],
    behaviour_logp: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"] | None:
    """The correction's weights; None where every one of them is 1."""
    return algorithm.correction(old_logp, behaviour_logp, mask).detach() if algorithm.correction.active else None


def ratio_base(
    algorithm: Algorithm, old_logp: Float[Tensor, "B T"], behaviour_logp: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """What the ratio divides by: `old_logp` as the trainer computes it, or the sampler's own log-probs.

    Source of the second: GSPO (2507.18071) section 5.4, which would spare the old-log-prob pass.
    """
    return behaviour_logp if algorithm.old_logp == "rollout" else old_logp


def next_penalty_weight(
    algorithm: Algorithm,
    old_logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"] | None,
    mask: Bool[Tensor, "B T"],
) -> float | None:
    """The weight that an adaptive penalty of the reward takes for the next rollout batch; None where it is fixed."""
    view = PenaltyInput(logp=old_logp, old_logp=old_logp, ref_logp=ref_logp, entropy=None, mask=mask)
    found = [p.next_weight(p(view), mask) for p in algorithm.penalties if p.in_reward and p.adaptive]
    return next((weight for weight in found if weight is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """One micro-batch's critic loss."""

    loss: Float[Tensor, ""]
    clipped: Bool[Tensor, "B T"]  # the clipped branch is the larger one, so the gradient is 0


def value_loss(
    *,
    vpred: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    totals: BatchTotals,
    clip: float | None,
    aggregate: Aggregate,
) -> ValueLoss:
    """agg(1/2 max((V - R)^2, (clip(V, V_old +- clip) - R)^2)); `clip=None` drops the second term.

    `values` are the critic's before the update. Source: PPO's reference code; verl `compute_value_loss`.
    """
    expect_tokens("value_loss", mask, vpred=vpred, values=values, returns=returns)
    v, old, target = masked(vpred, mask), masked(values, mask).detach(), masked(returns, mask).detach()
    plain = (v - target).square()
    if clip is None:
        return ValueLoss(loss=aggregate(0.5 * plain, mask, totals), clipped=torch.zeros_like(mask))
    boxed = (v.clamp(old - clip, old + clip) - target).square()
    clipped = (boxed > plain) & mask
    return ValueLoss(loss=aggregate(0.5 * torch.where(clipped, boxed, plain), mask, totals), clipped=clipped)


def log_sequence_ratio_sd(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> float:
    """SD(log s_i) over rows with at least one token: the unit of a calibrated clip range (unbiased; 0 for one row)."""
    log_s = row_mean(masked(logp, mask).detach() - masked(old_logp, mask), mask)[mask.any(1)]
    return float(log_s.std()) if len(log_s) > 1 else 0.0
