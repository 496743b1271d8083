"""Metrics of a rollout batch, taken once per step before its first update."""

from __future__ import annotations

import torch

from harness.core.masked import masked, masked_sum
from harness.core.parts import Advantages
from harness.core.shapes import Bool, Float, Tensor
from harness.core.types import RolloutBatch
from harness.monitor.mismatch import mismatch_metrics
from harness.monitor.numbers import Row, Value, k3, numbers, quantiles
from harness.monitor.sampled import Rows, SampledCounts, all_rows
from harness.monitor.text import text_metrics


@torch.no_grad()
def rollout_metrics(
    batch: RolloutBatch,
    advantages: Advantages,
    shaped_reward: Float[Tensor, "B"],
    sampled: SampledCounts,
    *,
    old_logp: Float[Tensor, "B T"] | None = None,
    ref_logp: Float[Tensor, "B T"] | None = None,
    values: Float[Tensor, "B T"] | None = None,
) -> Row:
    """Reward, signal, entropy, length, text, advantage, critic, reference KL; mismatch where an old pass was made.

    Entropy, length and text cover all rows sampled in this step, refused groups included and carried-over ones left
    out; advantages and shaped reward the batch.
    """
    rows = all_rows(batch, sampled)
    fresh = batch.mask & batch.fresh[:, None]
    found: dict[str, Value] = {
        **reward_metrics(shaped_reward, sampled),
        **signal_metrics(batch, advantages.advantages, sampled),
        **entropy_metrics(rows),
        **length_metrics(rows),
        **text_metrics(rows),
        **advantage_metrics(advantages.advantages, batch.mask),
        "budget/sampled_tokens": sampled.tokens,
        "budget/prompts": sampled.groups,
        "budget/carried_prompts": sampled.carried,
        "health/nonfinite_reward": sampled.nonfinite_reward,
    }
    if values is not None and advantages.returns is not None:
        found |= value_metrics(values, advantages.returns, batch.mask)
    if ref_logp is not None:
        found |= reference_metrics(batch.behaviour_logp if old_logp is None else old_logp, ref_logp, fresh)
    if old_logp is not None and old_logp is not batch.behaviour_logp:
        found |= mismatch_metrics([(old_logp, batch.behaviour_logp, fresh)])
    for name, component in batch.components.items():
        found[f"reward/component/{name}"] = component.double().nanmean() if component.numel() else None
    return numbers(found)


def reward_metrics(shaped_reward: Float[Tensor, "B"], sampled: SampledCounts) -> dict[str, Value]:
    """Task reward over all sampled rows, and the mean of the shaped one."""
    return {
        "reward/mean": sampled.reward_mean,
        "reward/std": sampled.reward_std,
        "reward/group_std": sampled.group_std,
        "reward/shaped_mean": shaped_reward.double().mean() if shaped_reward.numel() else None,
        "signal/zero_var_frac": sampled.zero_var,
        "signal/zero_var_frac_all0": sampled.zero_var_all0,
        "signal/zero_var_frac_all1": sampled.zero_var_all1,
    }


def signal_metrics(batch: RolloutBatch, advantages: Float[Tensor, "B T"], sampled: SampledCounts) -> dict[str, Value]:
    """How much of what was sampled reaches the gradient."""
    contributing = ((advantages != 0) & batch.mask).any(-1)
    groups = batch.num_groups
    return {
        "signal/effective_groups": int(batch.group[contributing].unique().numel()),
        "signal/effective_rows_frac": contributing.sum() / sampled.rows if sampled.rows else None,
        "signal/oversample_factor": sampled.groups / groups if groups else None,
        "signal/refill_rounds": sampled.rounds,
        "signal/refill_exhausted": sampled.exhausted,
    }


def entropy_metrics(rows: Rows) -> dict[str, Value]:
    """Exact entropy per token and per row with its spread, and the sampled estimate -logp; nats."""
    found: dict[str, Value] = {}
    sampled = -rows.logp[rows.mask & rows.logp.isfinite()].double()
    if sampled.numel():
        found["entropy/sampled"] = sampled.mean()
    if rows.entropy is None:
        return found
    use = rows.mask & rows.entropy.isfinite()
    flat = rows.entropy[use].double()
    if flat.numel():
        count = use.sum(-1)
        per_row = masked_sum(rows.entropy.double(), use) / count.clamp(min=1)
        found["entropy/exact"] = flat.mean()
        found["entropy/exact_seq"] = per_row.sum() / (count > 0).sum()
        found["entropy/p10"], found["entropy/p90"] = quantiles(flat.sort().values, (0.1, 0.9))
    return found


def length_metrics(rows: Rows) -> dict[str, Value]:
    """Response lengths in tokens, split by correctness, and the share cut at the limit."""
    length = rows.mask.sum(-1).double()
    if not length.numel():
        return {}
    median, high = quantiles(length.sort().values, (0.5, 0.95))
    right = rows.correct.double()
    wrong = 1 - right
    return {
        "len/mean": length.mean(),
        "len/p50": median,
        "len/p95": high,
        "len/max": length.max(),
        "len/correct_mean": (length * right).sum() / right.sum(),  # 0 / 0 is NaN, which becomes null
        "len/incorrect_mean": (length * wrong).sum() / wrong.sum(),
        "len/trunc_rate": rows.truncated.double().mean(),
    }


def advantage_metrics(advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> dict[str, Value]:
    """Moments of A over the batch's tokens."""
    flat = advantages[mask & advantages.isfinite()].double()
    if not flat.numel():
        return {}
    return {
        "adv/mean": flat.mean(),
        "adv/std": flat.std(correction=0),
        "adv/abs_max": flat.abs().max(),
        "adv/pos_frac": (flat > 0).double().mean(),
    }


def value_metrics(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, Value]:
    """Explained variance 1 - Var(R - V) / (Var(R) + 1e-8) over tokens."""
    use = mask & values.isfinite() & returns.isfinite()
    target, residual = returns[use].double(), (returns - values)[use].double()
    if not target.numel():
        return {}
    return {"value/explained_var": 1 - residual.var(correction=0) / (target.var(correction=0) + 1e-8)}


def reference_metrics(
    logp: Float[Tensor, "B T"], ref_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, Value]:
    """KL(policy || reference) by k1 = logp - ref and k3 = e^u - 1 - u, u = ref - logp; samples are the policy's."""
    use = mask & logp.isfinite() & ref_logp.isfinite()
    tokens, rows = use.sum(), use.any(-1).sum()
    u = masked((ref_logp - logp).double(), use)
    k1_sum, k3_sum = -u.sum(), masked(k3(u), use).sum()
    return {
        "kl_ref/k1": k1_sum / tokens,
        "kl_ref/k3": k3_sum / tokens,
        "kl_ref/k1_seq": k1_sum / rows,
        "kl_ref/k3_seq": k3_sum / rows,
    }
