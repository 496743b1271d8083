"""Settings of the peers -> records of the public builder. No mathematics here (tests/architecture)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.algorithm import Algorithm
from harness.core.parts import Updates

Hyper = Mapping[str, Any]
Slots = dict[str, Any]


def record(**slots: Any) -> Algorithm:
    """A record with neutral values in the slots that are not named."""
    neutral: Slots = {
        "name": "case",
        "siblings": 4,
        "admission": "all",
        "selection": "all",
        "rewards": [],
        "advantage": "group",
        "ratio": "token",
        "surrogate": "clip",
        "aggregate": "token-mean",
        "penalties": [],
        "updates": Updates(),
    }
    return Algorithm.model_validate({**neutral, **slots})


def verl_aggregate(name: str) -> Slots:
    """verl divides by n_i + 1e-8, and by L alone."""
    extra: dict[str, Slots] = {
        "seq-mean-token-mean": {"eps": 1e-8},
        "seq-mean-token-sum-norm": {"per_row": False},
    }
    return {"kind": name, **extra.get(name, {})}


def kl(estimator: str | None, coef: float, **fields: Any) -> list[Slots]:
    """A KL penalty, where the setting names an estimator."""
    if not estimator:
        return []
    name = {"low_var_kl": "k3"}.get(estimator, estimator)
    return [{"kind": "kl", "estimator": name, "coef": coef, **fields}]


VERL_DRIFT = {"vanilla": 20.0, "cispo": 20.0, "gspo": None}  # bound of old_logp - logp in the metric ppo_kl


def verl_clip(h: Hyper) -> Slots:
    """Clip of verl's `vanilla` loss; a dual clip of 1e30 is none."""
    dual = None if h["clip_c"] >= 1e30 else h["clip_c"]
    return {"kind": "clip", "low": h["clip_low"], "high": h["clip_high"], "dual": dual}


def verl_group(h: Hyper) -> Algorithm:
    """A group method of verl: vanilla, gspo or cispo.

    gspo has no dual clip, and `loss_agg` is its KL term's alone: its policy term is always averaged by response.
    """
    loss, aggregate = h["loss"], verl_aggregate(h["loss_agg"])
    bounds = {"low": h["clip_low"], "high": h["clip_high"]}
    surrogates: dict[str, Slots] = {
        "vanilla": verl_clip(h),
        "gspo": {"kind": "clip", **bounds},
        "cispo": {"kind": "cispo", **bounds},
    }
    return record(
        advantage={"kind": "group", "eps": h["eps_adv"], "std": "unbiased" if h["norm_by_std"] else "none"},
        ratio={"gspo": "sequence_value"}.get(loss, "token"),
        surrogate=surrogates[loss],
        aggregate={"gspo": verl_aggregate("seq-mean-token-mean")}.get(loss, aggregate),
        penalties=kl(h["kl_type"], h["kl_coef"], **{"gspo": {"aggregate": aggregate}}.get(loss, {})),
    )


def verl_ppo(h: Hyper) -> Algorithm:
    """PPO of verl; its critic's aggregation is `verl_aggregate(vf_agg)`."""
    return record(
        advantage={"kind": "gae", "gamma": h["gamma"], "lam": h["lam"], "value_clip": h["cliprange_value"]},
        surrogate=verl_clip(h),
        aggregate=verl_aggregate(h["loss_agg"]),
        penalties=kl(h["kl_in_reward"], h["kl_coef"], place="reward"),
    )


TRL_RATIOS = {"token": "token", "sequence": "sequence", "sequence_token": "sequence_value"}


def trl_aggregate(h: Hyper) -> Slots:
    """TRL's loss types; all of them count empty rows."""
    known: dict[str, Slots] = {
        "grpo": {"kind": "seq-mean-token-mean", "count_empty": True},
        "dapo": {"kind": "token-mean"},
        "cispo": {"kind": "token-mean"},
        "bnpo": {"kind": "token-mean", "scope": "micro"},
        "luspo": {"kind": "seq-mean-token-sum", "count_empty": True},
        "dr_grpo": {"kind": "seq-mean-token-sum-norm", "length": h["max_completion_length"]},
    }
    return known[h["loss_type"]]


def trl_surrogate(h: Hyper) -> Slots:
    """Clip, two-sided clip, or the absolute cap of `cispo`."""
    if h["loss_type"] == "cispo":
        return {"kind": "cispo_capped", "cap": h["clip_high"]}
    bounds = {"low": h["clip_low"], "high": h["clip_high"]}
    if h["delta"] is None:
        return {"kind": "clip", **bounds}
    return {"kind": "two_sided", **bounds, "delta": h["delta"]}


def trl_advantage(h: Hyper) -> Slots:
    """Group advantage from one or several reward functions, called 0, 1, ..."""
    weights = {str(i): w for i, w in enumerate(h.get("weights", [1.0]))}
    std = "none" if h["scale_rewards"] == "none" else "unbiased"
    if h.get("multi_objective") == "normalize_then_sum":
        return {"kind": "normalize_then_sum", "weights": weights, "std": std, "eps": h["eps_adv"]}
    scope = "batch" if h["scale_rewards"] == "batch" else "group"
    common: Slots = {"std": std, "eps": h["eps_adv"], "scope": scope}
    if len(weights) > 1:
        return {"kind": "sum_then_normalize", "weights": weights, **common}
    return {"kind": "group", **common}


def trl_group(h: Hyper) -> Algorithm:
    """A group method of TRL: no guards, eps 1e-4; GFPO drops the rows that its selection rejects."""
    filtered = "num_remains_in_group" in h
    return record(
        siblings=h.get("num_generations", 4),
        selection={"kind": h["metric"], "k": h["num_remains_in_group"]} if filtered else "all",
        exclusions=["rejected"] if filtered else [],
        advantage=trl_advantage(h),
        ratio={"kind": TRL_RATIOS[h["is_level"]], "guard": None},
        surrogate=trl_surrogate(h),
        aggregate=trl_aggregate(h),
        penalties=kl("k3-corrected" if h["bias_kl"] else "k3", h["beta"], clamp=False),
    )


def trl_ppo(h: Hyper) -> Algorithm:
    """TRL's former PPO."""
    return record(
        advantage={
            "kind": "gae_trl",
            "gamma": h["gamma"],
            "lam": h["lam"],
            "value_clip": h["cliprange_value"],
            "whiten_rewards": h["whiten_rewards"],
        },
        ratio={"kind": "token", "guard": None},
        surrogate={"kind": "clip", "low": h["cliprange"], "high": h["cliprange"]},
        penalties=kl(h["kl_estimator"], h["kl_coef"], place="reward", clamp=False),
    )


def openrlhf_advantage(h: Hyper) -> Slots:
    """GAE with OpenRLHF's whitening, or its group normalisation."""
    if "gamma" in h:
        return {"kind": "gae_openrlhf", "gamma": h["gamma"], "lam": h["lam"], "value_clip": h["value_clip"]}
    return {"kind": "group", "eps": h["eps_adv"]}


OPENRLHF_RATIOS: dict[str, Slots] = {"ppo": {"kind": "token"}, "gspo": {"kind": "sequence", "guard": None}}


def openrlhf(h: Hyper) -> Algorithm:
    """PPO, GRPO or GSPO of OpenRLHF."""
    return record(
        advantage=openrlhf_advantage(h),
        ratio=OPENRLHF_RATIOS[h["typ"]],
        surrogate={"kind": "clip", "low": h["clip_low"], "high": h["clip_high"], "dual": h["dual_clip"]},
        aggregate=verl_aggregate("token-mean" if h["token_level_loss"] else "seq-mean-token-mean"),
    )


def openrlhf_reward(h: Hyper) -> Algorithm:
    """KL in the reward with every estimator limited to +-10; a negative coefficient means none."""
    clip = h["reward_clip"]
    coef = max(h["kl_coef"], 0.0)
    return record(
        advantage="gae_openrlhf",
        rewards=[] if clip is None else [{"kind": "clip", "low": clip[0], "high": clip[1]}],
        penalties=kl(h["kl_type"], coef, place="reward", clamp=False, bound=10.0),
    )


def gfpo_paper(h: Hyper) -> Algorithm:
    """GFPO Eq. 2 on verl's loss."""
    return record(
        siblings=h["G"],
        selection={"kind": h["metric"], "k": h["k"]},
        advantage={"kind": "group", "std": "biased", "eps": h["eps_adv"]},
        surrogate=verl_clip(h),
        aggregate=verl_aggregate(h["loss_agg"]),
        penalties=kl(h["kl_type"], h["kl_coef"]),
    )
