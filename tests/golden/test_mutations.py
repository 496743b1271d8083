"""Deliberate mistakes in our parts, each of which the golden cases must catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.parts import (
    admission,
    advantages,
    aggregates,
    groupstats,
    kl,
    multireward,
    penalties,
    quirks,
    ratios,
    rewards,
    selection,
    surrogates,
)
from harness.conform import losses, pieces
from harness.conform.cases import case_files
from harness.conform.check import check
from harness.core import routing
from harness.core.masked import masked, masked_sum
from harness.train import objective

FILES = case_files(None)
DEVIATION, ZSCORE, WHITENED = groupstats.deviation, groupstats.zscore, advantages.whitened
GROUP, VALUE_LOSS, POLICY_LOSS = advantages.group_advantage, objective.value_loss, objective.policy_loss
CLIP, ROUTE = surrogates.Clip.__call__, routing.route


def biased(*args: Any) -> Tensor:
    return DEVIATION(*args[:-1], "biased" if args[-1] == "unbiased" else args[-1])


def wide_eps(*args: Any) -> Tensor:
    return ZSCORE(*args[:-1], args[-1] * 100)


def swapped(self: Any, *args: Any) -> Any:
    return CLIP(self.model_copy(update={"low": self.high, "high": self.low}), *args)


def no_dual(self: Any, *args: Any) -> Any:
    return CLIP(self.model_copy(update={"dual": None}), *args)


def padded_mean(self: Any, loss: Tensor, mask: Tensor, totals: Any) -> Tensor:
    return masked_sum(loss, mask).sum() / mask.numel()


def halved(self: Any, loss: Tensor, mask: Tensor, totals: Any) -> Tensor:
    return 0.5 * masked_sum(loss, mask).sum() / max(totals.tokens, 1.0)


def through_observations(reward: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    return masked(quirks.gae_all_positions(masked(reward, mask), masked(values, mask), gamma, lam), mask)


def whiten_biased(x: Tensor, use: Tensor, eps: float = 1e-8) -> Tensor:
    return WHITENED(x, use, eps) * (use.sum() / (use.sum() - 1)).sqrt()


def whole_group(view: Any, *args: Any) -> Tensor:
    return torch.where(view.kept, GROUP(_all_kept(view), *args), 0.0)


def _all_kept(view: Any) -> Any:
    from dataclasses import replace

    return replace(view, kept=torch.ones_like(view.kept))


def unclipped_values(**given: Any) -> Any:
    return VALUE_LOSS(**{**given, "clip": None})


def unweighted(*args: Any, **given: Any) -> Any:
    return POLICY_LOSS(*args, **{**given, "weights": None})


def with_score_gradient(ratio: Tensor, a: Tensor, logp: Tensor, floor: float | None, ceiling: float) -> Any:
    none = torch.zeros_like(ratio, dtype=torch.bool)
    loss = -ratio.clamp(floor, ceiling) * a * logp
    return surrogates.SurrogateOutput(loss=loss, low=none, high=ratio > ceiling, dual=none, outside=none)


def straight_k3(d: Tensor, clamp: bool) -> Tensor:
    return d.exp() - d - 1


def unguarded(d: Tensor, clamp: bool) -> Tensor:
    return (-d).exp() + d - 1


def always_fresh(*args: Any, **given: Any) -> Any:
    return ROUTE(*args, **{**given, "replay": None})


def one_more(self: Any, view: Any) -> Tensor:
    return view.reward - self.fraction * (view.length > (self.limit - self.cache)).to(view.reward.dtype)


def strict_quartile(self: Any, seen: Tensor) -> int:
    if len(seen) < self.warmup_prompts:
        return int(self.k_very_hard)
    above = int((seen[-1] > self.quartiles(seen)).sum())
    return int((self.k_very_hard, self.k_hard, self.k_medium, self.k_easy)[above])


def plain_loo(self: Any, view: Any) -> Any:
    row = groupstats.centred(view.reward, view.kept, view.group, view.num_groups)
    return advantages.Advantages(advantages=advantages.spread(row, view))


def closed_range(self: Any, view: Any) -> Tensor:
    mean = torch.stack([view.reward[view.group == g].mean() for g in range(view.num_groups)])
    return (mean >= self.low) & (mean <= self.high)


MUTATIONS: dict[str, tuple[object, str, Callable[..., Any], tuple[str, ...]]] = {
    "biased deviation": (groupstats, "deviation", biased, ("grpo_trl", "grpo_verl_paper")),
    "eps a hundred times too large": (advantages, "zscore", wide_eps, ("grpo_trl", "grpo_verl_paper")),
    "clip bounds swapped": (surrogates.Clip, "__call__", swapped, ("dapo_verl", "dapo_trl")),
    "dual clip ignored": (surrogates.Clip, "__call__", no_dual, ("ppo_verl_dualclip", "grpo_verl_default")),
    "mean over padding": (aggregates.TokenMean, "__call__", padded_mean, ("dapo_verl", "grpo_verl_default")),
    "loss halved": (aggregates.TokenMean, "__call__", halved, ("dapo_verl", "dapo_trl_accum")),
    "empty rows not counted": (
        aggregates, "_rows", lambda totals, empty: max(totals.rows_nonempty, 1.0), ("grpo_trl", "luspo_trl")
    ),
    "sequence ratio over padding": (ratios, "row_mean", lambda x, mask: x.mean(-1), ("gspo_trl", "gspo_verl")),
    "ratio without the old log-probs": (
        ratios, "log_ratio", lambda new, old, mask: masked(new, mask), ("grpo_trl", "dapo_verl")
    ),
    "k3 the wrong way round": (kl, "k3", straight_k3, ("kl_verl_k3", "grpo_trl")),
    "k3 without its guard": (kl, "k3", unguarded, ("kl_verl_k3", "grpo_verl_paper")),
    "straight-through without the other gradient": (
        kl, "straight_through", lambda value, gradient: value, ("kl_verl_k3plus", "grpo_verl_k3plus")
    ),
    "observations cost discount": (advantages, "gae", through_observations, ("gae_verl", "ppo_verl_plain")),
    "biased whitening": (advantages, "whitened", whiten_biased, ("gae_verl", "ppo_verl_plain")),
    "paid at the first token": (
        advantages, "last_token", lambda mask: mask & (mask.cumsum(1) == 1), ("ppo_verl_plain", "kl_openrlhf_k1")
    ),
    "GFPO's statistics over all rows": (
        advantages, "group_advantage", whole_group, ("gfpo_paper_shortest", "gfpo_trl_token_efficiency")
    ),
    "value clip ignored": (losses, "value_loss", unclipped_values, ("ppo_verl_plain", "ppo_trl")),
    "rollout weights ignored": (losses, "policy_loss", unweighted, ("grpo_verl_rollout_is", "gspo_verl_rollout_is")),
    "CISPO with the ratio's gradient": (surrogates, "_weighted_score", with_score_gradient, ("cispo_trl",)),
    "step instead of a ramp": (rewards.Overlong, "__call__", one_more, ("overlong_verl",)),
    "strict quartiles": (selection.Adaptive, "choose", strict_quartile, ("gfpo_adaptive_k",)),
    "baseline with the row itself": (advantages.LeaveOneOut, "__call__", plain_loo, ("adv_rloo_verl",)),
    "closed admission range": (admission.MeanBetween, "__call__", closed_range, ("dynamic_sampling_openrlhf",)),
    "replay ignored": (routing, "route", always_fresh, ("routing_replay_verl_sigmoid",)),
    "controller without its limit": (
        pieces, "adapted", lambda c, x, target, horizon, n: c * (1 + (x / target - 1) * n / horizon),
        ("adaptive_kl_verl",),
    ),
    "abstentions count as 0": (
        multireward, "usable", lambda parts, view: view.kept, ("gdpo_trl", "grpo_trl_multi")
    ),
    "KL mean over tokens": (
        penalties.Kl, "mean", lambda self, value, mask: masked_sum(value, mask).sum() / mask.sum(), ("ppo_verl_plain",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, wrong, suites = MUTATIONS[name]
    files = [path for path in FILES if path.stem.split("__")[0] in suites]
    monkeypatch.setattr(where, attribute, wrong)
    results = check(files)
    assert all(r.passed < r.cases for r in results), {r.suite: r.passed for r in results}
