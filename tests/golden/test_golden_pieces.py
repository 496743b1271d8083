"""GAE, aggregation, KL estimators, overlong punishment, dynamic sampling and adaptive k of the peers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from algorithms.parts.admission import Mixed
from algorithms.parts.kl import kl_estimate
from algorithms.parts.rewards import Overlong
from algorithms.parts.selection import Adaptive
from harness.core.masked import masked
from harness.core.parts import AdvantageInput, GroupView, RowView
from harness.core.types import BatchTotals
from harness.rollout.refill import Refill, RefillExhausted, refill
from harness.train.objective import batch_totals
from tests.golden.cases import cases, close, load, record, verl_aggregate


@pytest.mark.parametrize("path", cases("gae_verl"))
def test_gae(path: Path) -> None:
    case = load(path)
    rows = len(case.mask)
    view = AdvantageInput(
        reward=torch.zeros(rows, dtype=torch.float64),
        mask=case.mask,
        group=torch.arange(rows),
        num_groups=rows,
        kept=torch.ones(rows, dtype=torch.bool),
        token_reward=case.given["token_level_rewards"],
        values=case.given["values"],
    )
    for whiten, name in ((True, "advantages"), (False, "advantages_raw")):
        out = record(
            advantage={"kind": "gae", "gamma": case.hyper["gamma"], "lam": case.hyper["lam"], "whiten": whiten}
        ).advantage(view)
        close(out.advantages, masked(case.expected[name], case.mask), case.tol, name)
        assert out.returns is not None
        close(out.returns, masked(case.expected["returns"], case.mask), case.tol, "returns")


MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


@pytest.mark.parametrize("path", cases(*(f"agg_verl_{mode}" for mode in MODES)))
def test_aggregates(path: Path) -> None:
    case = load(path)
    h, own = case.hyper, batch_totals(case.mask)
    ranks = h.get("dp_size", 1)
    totals = BatchTotals(
        tokens=h.get("batch_num_tokens", own.tokens) / ranks,
        rows=own.rows,
        rows_nonempty=h.get("global_batch_size", own.rows_nonempty) / ranks,
        width=h.get("loss_scale_factor", own.width),
    )
    loss = case.given["loss_mat"].clone().requires_grad_()
    out = record(aggregate=verl_aggregate(h["loss_agg"])).aggregate(loss, case.mask, totals)
    close(out.detach(), case.expected["loss"], case.tol, "loss")
    close(torch.autograd.grad(out, loss)[0], case.expected["grad"], case.tol, "grad")


KINDS = ("k1", "abs", "k2", "k3", "low_var_kl", "k1plus", "k3plus")


@pytest.mark.parametrize("path", cases(*(f"kl_verl_{kind}" for kind in KINDS)))
def test_kl_estimators(path: Path) -> None:
    case = load(path)
    logp = case.given["logp"].clone().requires_grad_()
    estimator = {"low_var_kl": "k3"}.get(case.hyper["kl_type"], case.hyper["kl_type"])
    kl = masked(kl_estimate(estimator, logp, case.given["ref_logp"], logp), case.mask)
    close(kl.detach(), masked(case.expected["kl"], case.mask), case.tol, "kl")
    close(torch.autograd.grad(kl.sum(), logp)[0], case.expected["grad_logp"], case.tol, "grad_logp")


@pytest.mark.parametrize("peer", ["verl", "trl", "openrlhf"])
@pytest.mark.parametrize("path", cases("overlong_verl"))
def test_overlong(path: Path, peer: str) -> None:
    case = load(path)
    h = case.hyper
    part = Overlong(cache=h["L_cache"], limit=h["L_max"], fraction=1.0, beyond="linear" if peer == "verl" else "flat")
    for lengths, name in (("lengths", f"penalty_{peer}"), ("lengths_over", f"over_{peer}")):
        n = case.given[lengths]
        view = RowView(
            reward=torch.zeros(len(n), dtype=torch.float64),
            correct=torch.zeros(len(n), dtype=torch.bool),
            length=n,
            group=torch.zeros_like(n),
            num_groups=1,
            limit=1,
            reward_range=(0.0, 1.0 if peer == "trl" else h["factor"]),
            uniform=torch.zeros(len(n)),
        )
        close(part(view), case.expected[name], case.tol, name)


@pytest.mark.parametrize("path", cases("dynamic_sampling_recipe"))
def test_dynamic_sampling(path: Path) -> None:
    case = load(path)
    h = case.hyper
    part = Mixed(metric="reward", max_rounds=h["max_num_gen_batches"], on_exhausted="raise")
    admitted = []
    for metric, uid in zip(case.given["metric"], case.given["uid"], strict=True):
        ids, group = uid.unique(return_inverse=True)
        view = GroupView(
            reward=metric, correct=torch.zeros_like(metric, dtype=torch.bool), group=group, num_groups=len(ids)
        )
        admitted.append(ids[part(view)].tolist())
    plan = Refill.of(part, h["train_batch_size"])
    if case.expected["raised"]:
        with pytest.raises(RefillExhausted, match="on_exhausted=train"):
            refill(admitted, plan)
        return
    out = refill(admitted, plan)
    assert out.rounds == int(case.expected["num_gen_batches"])
    assert not out.exhausted
    assert [uid for uid in out.kept for _ in range(h["n"])] == case.expected["kept_uid"].tolist()


@pytest.mark.parametrize("path", cases("gfpo_adaptive_k"))
def test_adaptive_k(path: Path) -> None:
    case = load(path)
    h = case.hyper
    part = Adaptive(
        k_very_hard=h["k_very_hard"],
        k_hard=h["k_hard"],
        k_medium=h["k_med"],
        k_easy=h["k_easy"],
        warmup_prompts=h["warmup"],
    )
    seen = case.given["mean_reward"]
    assert [part.choose(seen[: i + 1]) for i in range(len(seen))] == case.expected["k_exact"].tolist()
