"""Advantages, losses, gradients and clip fractions of the peers, through the parts and `policy_loss`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.parts.selection import Shortest, best_of_group
from harness.core.algorithm import Algorithm
from harness.core.masked import masked_mean
from harness.core.parts import RowView
from harness.core.types import BatchTotals, LossOutput
from harness.train.objective import batch_totals, policy_loss, token_rewards, value_loss
from tests.golden.cases import (
    Case,
    advantage_input,
    cases,
    check_gradient,
    close,
    kl_penalty,
    load,
    record,
    trl_record,
    verl_aggregate,
    verl_record,
)


def run(
    case: Case, algorithm: Algorithm, advantages: Tensor, totals: BatchTotals | None = None
) -> tuple[LossOutput, Tensor]:
    logp = case.given["logp"].clone().requires_grad_()
    out = policy_loss(
        algorithm,
        logp=logp,
        old_logp=case.given["old_logp"],
        ref_logp=case.given.get("ref_logp"),
        entropy=None,
        advantages=advantages,
        mask=case.mask,
        totals=totals or batch_totals(case.mask),
    )
    return out, logp


def check_verl(case: Case, out: LossOutput, logp: Tensor) -> None:
    close(out.loss.detach(), case.expected["loss"], case.tol, "loss")
    check_gradient(out, logp, case)
    for name, value in (("pg_loss", out.policy_loss), ("kl_loss", out.penalties.get("kl"))):
        if name in case.expected and value is not None:
            close(value, case.expected[name], case.tol, name)
    clipped = (out.clipped_low | out.clipped_high).double()
    close(masked_mean(clipped, case.mask), case.expected["clipfrac"], case.tol_metrics, "clipfrac")
    dual = masked_mean(out.clipped_dual.double(), case.mask)
    close(dual, case.expected["clipfrac_lower"], case.tol_metrics, "clipfrac_lower")


VERL = (
    "grpo_verl_paper",
    "grpo_verl_default",
    "grpo_verl_k3plus",
    "grpo_verl_token_sum",
    "drgrpo_verl",
    "dapo_verl",
    "gspo_verl",
    "gspo_verl_kl",
)


@pytest.mark.parametrize("path", cases(*VERL))
def test_group_methods_of_verl(path: Path) -> None:
    case = load(path)
    algorithm = verl_record(case.hyper)
    advantages = algorithm.advantage(advantage_input(case)).advantages
    close(advantages, case.expected["advantages"], case.tol, "advantages")
    check_verl(case, *run(case, algorithm, advantages))


@pytest.mark.parametrize("path", cases("gspo_verl"))
def test_pure_sequence_ratio_matches_verl_too(path: Path) -> None:
    case = load(path)
    algorithm = verl_record(case.hyper).model_copy(update={"ratio": record(ratio="sequence").ratio})
    check_verl(case, *run(case, algorithm, algorithm.advantage(advantage_input(case)).advantages))


@pytest.mark.parametrize("path", cases("gspo_token_verl"))
def test_gspo_token_of_verl(path: Path) -> None:
    case = load(path)
    check_verl(case, *run(case, verl_record(case.hyper), case.given["token_advantages"]))


@pytest.mark.parametrize("path", cases("adv_grpo_verl_singleton"))
def test_singletons_of_verl(path: Path) -> None:
    case = load(path)
    reward = case.given["token_level_rewards"].masked_fill(~case.mask, 0.0).sum(1)
    advantage = {"kind": "group", "singleton": "raw", "std": "unbiased" if case.hyper["norm_by_std"] else "none"}
    out = record(advantage=advantage).advantage(advantage_input(case, reward=reward))
    close(out.advantages, case.expected["advantages"], case.tol)


TRL = (
    "grpo_trl",
    "grpo_trl_biaskl",
    "grpo_trl_twosided",
    "grpo_trl_batchstd",
    "bnpo_trl",
    "dapo_trl",
    "dapo_trl_accum",
    "drgrpo_trl",
    "gspo_trl",
    "gspo_trl_kl",
    "gspo_trl_dapo_agg",
    "luspo_trl",
    "gspo_token_trl_uniform",
    "gspo_token_trl",
)


def trl_totals(case: Case) -> BatchTotals:
    """TRL's `dapo` counts the generation batch and takes the average per optimizer step; `bnpo` counts itself."""
    h, own = case.hyper, batch_totals(case.mask)
    tokens = own.tokens if h["loss_type"] == "bnpo" else h["num_items"] * h["grad_accum"] / h["steps_per_generation"]
    return BatchTotals(tokens=tokens, rows=own.rows, rows_nonempty=own.rows_nonempty, width=own.width)


@pytest.mark.parametrize("path", cases(*TRL))
def test_group_methods_of_trl(path: Path) -> None:
    case = load(path)
    algorithm = trl_record(case.hyper)
    if "token_advantages" in case.given:
        advantages = case.given["token_advantages"]
    else:
        advantages = algorithm.advantage(advantage_input(case)).advantages
        row = case.expected["advantages"]
        close(advantages, row[:, None].expand(case.mask.shape).masked_fill(~case.mask, 0.0), case.tol, "advantages")
    out, logp = run(case, algorithm, advantages, trl_totals(case))
    close(out.loss.detach(), case.expected["loss"], case.tol, "loss")
    check_gradient(out, logp, case)
    by_row = case.hyper["is_level"] == "sequence"
    region = out.clipped_low | out.clipped_high
    for name, flag in (("low", out.clipped_low), ("high", out.clipped_high), ("region", region)):
        share = flag.any(1).double().mean() if by_row else masked_mean(flag.double(), case.mask)
        close(share, case.expected[f"clip_ratio_{name}_mean"], case.tol_metrics, name)


@pytest.mark.parametrize("path", cases("grpo_openrlhf", "gspo_openrlhf"))
def test_group_methods_of_openrlhf(path: Path) -> None:
    case = load(path)
    h = case.hyper
    algorithm = record(
        advantage={"kind": "group", "eps": h["eps_adv"]},
        ratio={"kind": "sequence", "guard": None} if h["typ"] == "gspo" else "token",
        surrogate={"kind": "clip", "low": h["clip_low"], "high": h["clip_high"], "dual": h["dual_clip"]},
        aggregate=verl_aggregate("token-mean" if h["token_level_loss"] else "seq-mean-token-mean"),
    )
    advantages = algorithm.advantage(advantage_input(case)).advantages
    close(advantages, case.expected["advantages"], case.tol, "advantages")
    out, logp = run(case, algorithm, advantages)
    close(out.loss.detach(), case.expected["loss"], case.tol, "loss")
    check_gradient(out, logp, case)


def gfpo_view(case: Case) -> RowView:
    view = advantage_input(case)
    return RowView(
        reward=view.reward,
        correct=torch.zeros_like(view.kept),
        length=case.mask.sum(1),
        group=view.group,
        num_groups=view.num_groups,
        limit=case.mask.shape[1],
        reward_range=(0.0, 1.0),
        uniform=torch.zeros_like(view.reward),
    )


@pytest.mark.parametrize("path", cases("gfpo_paper_shortest", "gfpo_paper_token_efficiency"))
def test_gfpo_of_the_paper(path: Path) -> None:
    case = load(path)
    h = case.hyper
    algorithm = record(
        advantage={"kind": "group", "std": "biased", "eps": h["eps_adv"]},
        surrogate={"kind": "clip", "low": h["clip_low"], "high": h["clip_high"], "dual": h["clip_c"]},
        aggregate=verl_aggregate(h["loss_agg"]),
        penalties=kl_penalty(h["kl_type"], h["kl_coef"]),
    )
    view = gfpo_view(case)
    kept = best_of_group(view, case.given["filter_score"], torch.full((view.num_groups,), h["k"]))
    assert kept.nonzero()[:, 0].tolist() == sorted(case.expected["kept_index"].tolist())
    if h["metric"] == "shortest":
        assert torch.equal(Shortest(k=h["k"])(view, ()).kept, kept)
    advantages = algorithm.advantage(advantage_input(case, kept=kept)).advantages
    row = case.expected["advantages"]
    close(advantages, row[:, None].expand(case.mask.shape).masked_fill(~case.mask, 0.0), case.tol, "advantages")
    check_verl(case, *run(case, algorithm, advantages))


def ppo_record(h: dict[str, Any]) -> Algorithm:
    return record(
        advantage={"kind": "gae", "gamma": h["gamma"], "lam": h["lam"], "value_clip": h["cliprange_value"]},
        surrogate={
            "kind": "clip",
            "low": h["clip_low"],
            "high": h["clip_high"],
            "dual": None if h["clip_c"] >= 1e30 else h["clip_c"],
        },
        aggregate=verl_aggregate(h["loss_agg"]),
        penalties=kl_penalty(h["kl_in_reward"], h["kl_coef"], place="reward"),
    )


@pytest.mark.parametrize("path", cases("ppo_verl_plain", "ppo_verl_dualclip"))
def test_ppo_of_verl(path: Path) -> None:
    case = load(path)
    given, expected = case.given, case.expected
    algorithm = ppo_record(dict(case.hyper))
    paid = token_rewards(algorithm, given["old_logp"], given["ref_logp"], case.mask)
    out = algorithm.advantage(advantage_input(case, token_reward=paid, values=given["values"]))
    close(out.advantages, expected["advantages"], case.tol, "advantages")
    assert out.returns is not None
    close(out.returns, expected["returns"], case.tol, "returns")
    check_verl(case, *run(case, algorithm, out.advantages))
    vpred = given["vpred"].clone().requires_grad_()
    critic = value_loss(
        vpred=vpred,
        values=given["values"],
        returns=out.returns,
        mask=case.mask,
        totals=batch_totals(case.mask),
        clip=case.hyper["cliprange_value"],
        aggregate=record(aggregate=verl_aggregate(case.hyper["vf_agg"])).aggregate,
    )
    close(critic.loss.detach(), expected["vf_loss"], case.tol, "vf_loss")
    close(torch.autograd.grad(critic.loss, vpred)[0], expected["grad_vpred"], case.tol, "grad_vpred")
    share = masked_mean(critic.clipped.double(), case.mask)
    close(share, expected["vf_clipfrac"], case.tol_metrics, "vf_clipfrac")
