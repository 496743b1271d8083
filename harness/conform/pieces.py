"""Adapters of the suites about single parts. No mathematics here (tests/architecture)."""

from __future__ import annotations

import torch

from algorithms.parts import quirks, tdigest
from algorithms.parts.admission import MeanBetween, Mixed
from algorithms.parts.advantages import LeaveOneOut, paid
from algorithms.parts.exclusions import Truncated
from algorithms.parts.kl import adapted
from algorithms.parts.rewards import Overlong
from algorithms.parts.selection import Adaptive
from harness.conform import records
from harness.conform.cases import Case
from harness.conform.losses import Outputs, advantage_input, with_returns
from harness.core import routing
from harness.core.masked import masked
from harness.core.parts import AdvantageInput, ExclusionView, GroupView, PenaltyInput, RowView
from harness.core.shapes import Int, Tensor
from harness.rollout.refill import Refill, RefillExhausted, refill
from harness.train.objective import batch_totals, loss_mask, token_rewards


def _given_rewards(case: Case) -> AdvantageInput:
    return advantage_input(case, case.mask, reward=case.given["token_level_rewards"].sum(1))


def singleton(case: Case) -> Outputs:
    """verl's group advantage, groups of one included: A = R / (1 + eps)."""
    h = case.hyper
    std = "unbiased" if h["norm_by_std"] else "none"
    algorithm = records.record(advantage={"kind": "group", "singleton": "raw", "std": std, "eps": h["eps_adv"]})
    return {"advantages": algorithm.advantage(_given_rewards(case)).advantages}


def vectorized(case: Case) -> Outputs:
    """verl's float32 group advantage."""
    h = case.hyper
    part = quirks.GroupVectorized(eps=h["eps_adv"], floor=h["var_floor"], scale=h["norm_by_std"])
    return {"advantages": part(_given_rewards(case)).advantages}


def rloo(case: Case) -> Outputs:
    """verl's leave-one-out advantage."""
    return {"advantages": LeaveOneOut(singleton="raw")(_given_rewards(case)).advantages}


def gae(case: Case) -> Outputs:
    """GAE of verl, before and after whitening."""
    mask = case.mask
    view = AdvantageInput(
        reward=torch.zeros(len(mask), dtype=torch.float64),
        mask=mask,
        group=torch.arange(len(mask)),
        num_groups=len(mask),
        kept=torch.ones(len(mask), dtype=torch.bool),
        token_reward=case.given["token_level_rewards"],
        values=case.given["values"],
    )
    part = {"kind": "gae", "gamma": case.hyper["gamma"], "lam": case.hyper["lam"]}
    advantages, returns = with_returns(records.record(advantage=part).advantage(view))
    raw = records.record(advantage={**part, "whiten": False}).advantage(view)
    return {"advantages": advantages, "advantages_raw": raw.advantages, "returns": returns}


def aggregate(case: Case) -> Outputs:
    """verl's `agg_loss` with global denominators."""
    h = case.hyper
    totals = quirks.verl_totals(
        batch_totals(case.mask),
        h.get("batch_num_tokens"),
        h.get("global_batch_size"),
        h.get("loss_scale_factor"),
        h.get("dp_size", 1),
    )
    loss = case.given["loss_mat"].clone().requires_grad_()
    out = records.record(aggregate=records.verl_aggregate(h["loss_agg"])).aggregate(loss, case.mask, totals)
    return {"loss": out, "grad": torch.autograd.grad(out, loss)[0]}


def kl_verl(case: Case) -> Outputs:
    """verl's estimators and the gradient of their sum."""
    logp = case.given["logp"].clone().requires_grad_()
    (penalty,) = records.record(penalties=records.kl(case.hyper["kl_type"], 1.0)).penalties
    view = PenaltyInput(logp=logp, old_logp=logp, ref_logp=case.given["ref_logp"], entropy=None, mask=case.mask)
    value = masked(penalty(view), case.mask)
    return {"kl": value, "grad_logp": torch.autograd.grad(value.sum(), logp)[0]}


def kl_openrlhf(case: Case) -> Outputs:
    """OpenRLHF's estimators and the token rewards they make."""
    algorithm, given = records.openrlhf_reward(case.hyper), case.given
    logp, mask = given["logp"], case.mask
    (penalty,) = algorithm.penalties
    view = PenaltyInput(logp=logp, old_logp=logp, ref_logp=given["ref_logp"], entropy=None, mask=mask)
    rows = _rows(given["rewards"], mask.sum(1), mask.shape[1])
    reward = given["rewards"]
    for part in algorithm.rewards:
        reward = part(rows)
    tokens = AdvantageInput(
        reward=reward,
        mask=mask,
        group=torch.arange(len(mask)),
        num_groups=len(mask),
        kept=torch.ones(len(mask), dtype=torch.bool),
        token_reward=token_rewards(algorithm, logp, given["ref_logp"], mask),
    )
    return {"kl": penalty(view), "token_level_rewards": paid(tokens)}


def _rows(reward: Tensor, length: Int[Tensor, "B"], limit: int, top: float = 1.0) -> RowView:
    return RowView(
        reward=reward,
        correct=torch.zeros(len(reward), dtype=torch.bool),
        length=length,
        group=torch.zeros_like(length),
        num_groups=1,
        limit=limit,
        reward_range=(0.0, top),
        uniform=torch.zeros_like(reward),
    )


def adaptive_kl(case: Case) -> Outputs:
    """The coefficient after each rollout batch."""
    h, found = case.hyper, []
    coef = h["init"]
    for value in case.given["kl"].tolist():
        coef = adapted(coef, value, h["target"], h["horizon"], h["n_steps"])
        found.append(coef)
    return {"beta": torch.tensor(found, dtype=torch.float64)}


def overlong(case: Case) -> Outputs:
    """Soft punishment as verl, TRL (without a factor) and OpenRLHF have it, up to the limit and beyond."""
    h, found = case.hyper, {}
    for peer, factor in (("verl", h["factor"]), ("trl", 1.0), ("openrlhf", h["factor"])):
        part = Overlong(
            cache=h["L_cache"], limit=h["L_max"], fraction=1.0, beyond="linear" if peer == "verl" else "flat"
        )
        for name, lengths in (("penalty", case.given["lengths"]), ("over", case.given["lengths_over"])):
            nothing = torch.zeros(len(lengths), dtype=torch.float64)
            found[f"{name}_{peer}"] = part(_rows(nothing, lengths, h["L_max"], factor))
    return found


def overlong_filter(case: Case) -> Outputs:
    """TRL's filter: the whole loss mask of a truncated row becomes 0."""
    cut = quirks.last_is_cut(case.given["last_token"], case.hyper["eos"], case.hyper["pad"])
    view = ExclusionView(kept=torch.ones_like(cut), truncated=cut)
    mask, _ = loss_mask(records.record(exclusions=[Truncated()]), case.mask, view)
    return {"mask": mask, "num_items": mask.sum()}


def _group_view(reward: Tensor, group: Int[Tensor, "B"], num_groups: int) -> GroupView:
    return GroupView(
        reward=reward, correct=torch.zeros_like(reward, dtype=torch.bool), group=group, num_groups=num_groups
    )


def dynamic_recipe(case: Case) -> Outputs:
    """Dynamic sampling of DAPO's recipe, refill included; what it keeps is not told where it raises."""
    h = case.hyper
    part = Mixed(metric="reward", max_rounds=h["max_num_gen_batches"], on_exhausted="raise")
    admitted = []
    for metric, uid in zip(case.given["metric"], case.given["uid"], strict=True):
        ids, group = uid.unique(return_inverse=True)
        admitted.append(ids[part(_group_view(metric, group, len(ids)))].tolist())
    try:
        out = refill(admitted, Refill.of(part, h["train_batch_size"]))
    except RefillExhausted:
        rounds = h["max_num_gen_batches"]
        return {
            "raised": torch.tensor(1),
            "num_gen_batches": torch.tensor(rounds),
            "kept_uid": torch.zeros(0, dtype=torch.int64),
        }
    kept = [uid for uid in out.kept for _ in range(h["n"])]
    return {
        "raised": torch.tensor(0),
        "num_gen_batches": torch.tensor(out.rounds),
        "kept_uid": torch.tensor(kept, dtype=torch.int64),
    }


def dynamic_openrlhf(case: Case) -> Outputs:
    """OpenRLHF's rule on the mean score of a group."""
    scores = case.given["scores"]
    group = torch.arange(len(scores)).repeat_interleave(scores.shape[1])
    part = MeanBetween(low=case.hyper["range_low"], high=case.hyper["range_high"])
    return {"keep": part(_group_view(scores.flatten(), group, len(scores)))}


def adaptive_k(case: Case) -> Outputs:
    """Adaptive k after every prompt, by exact quantiles and, where its package is installed, by our t-digest."""
    h, seen = case.hyper, case.given["mean_reward"]
    part = Adaptive(
        k_very_hard=h["k_very_hard"],
        k_hard=h["k_hard"],
        k_medium=h["k_med"],
        k_easy=h["k_easy"],
        warmup_prompts=h["warmup"],
    )
    prefixes = [seen[:end] for end, _ in enumerate(seen, start=1)]
    found = {
        "k_exact": torch.tensor([part.choose(x) for x in prefixes]),
        "q_exact": torch.stack([part.quartiles(x) for x in prefixes]),
    }
    if not tdigest.available():
        return found
    sketched, _ = part.model_copy(update={"tdigest": h["compression"]}).follow((), seen.tolist())
    return {**found, "k_ours": torch.tensor(sketched)}


def routes(case: Case) -> Outputs:
    """Router gates of old logits, of new ones, and of new ones on the old experts, with gradients."""
    h, given = case.hyper, case.given
    bias = given.get("expert_bias")

    def gates(logits: Tensor, replay: Tensor | None) -> routing.Routes:
        return routing.route(
            logits, h["topk"], h["mode"], replay=replay, bias=bias, scale=h["scaling"], eps=h["renorm_eps"]
        )

    old = gates(given["logits_old"], None)
    found = {"indices_old": old.experts, "probs_old": old.gates}
    for name, replay in (("free", None), ("replay", old.experts), ("replay_bwd", old.experts)):
        logits = given["logits_new"].clone().requires_grad_()
        new = gates(logits, replay)
        (grad,) = torch.autograd.grad(new.gates, logits, given["upstream"])
        found |= {f"probs_{name}": new.gates, f"map_{name}": new.used, f"grad_{name}": grad}
        if name == "free":
            found["changed_token_frac"] = routing.changed_tokens(new.used, old.used)
    return found
