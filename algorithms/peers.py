"""What a library's own default or script called by that name computes; for comparisons with its numbers.

They take the library's formula, not its run length: `siblings` and `updates` are ours. The quirks that only a library
has live in `algorithms/parts/quirks.py` and are reached from here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from algorithms.variants import variant
from harness.core.registry import register_algorithm

# verl divides by n_i + 1e-8 and by L alone; its `vanilla` loss always has a dual clip of 3.
VERL_MEAN = {"kind": "seq-mean-token-mean", "eps": 1e-8}
VERL_KL = {"coef": 0.001, "estimator": "k3"}
# TRL has no guards, counts empty rows, and divides by sigma + 1e-4.
TRL_TOKEN: Mapping[str, Any] = {"ratio.guard": None, "advantage.eps": 1e-4}
TRL_MEAN = {"kind": "seq-mean-token-mean", "count_empty": True}
OPENRLHF = {"advantage.eps": 1e-9, "penalties.kl": None, "aggregate.eps": 1e-8}
OPENRLHF_KL = {"coef": 0.01, "estimator": "k1", "place": "reward", "clamp": False, "bound": 10.0}
GAE_OPENRLHF = {"kind": "gae_openrlhf", "warmup_steps": 5}

PEERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # DeepSeekMath's loss in TRL; its own default, `loss_type="dapo"` without KL, is `dapo_trl`
    "grpo_trl": ("grpo", {**TRL_TOKEN, "aggregate": TRL_MEAN, "penalties.kl.clamp": False}),
    "grpo_trl_corrected": (
        "grpo",
        {**TRL_TOKEN, "aggregate": TRL_MEAN, "penalties.kl": {**OPENRLHF_KL, "coef": 0.04, "place": "loss"}}
        | {"penalties.kl.estimator": "k3-corrected", "penalties.kl.bound": None},
    ),
    "grpo_verl": ("grpo", {"surrogate.dual": 3.0, "aggregate": "token-mean", "penalties.kl": VERL_KL}),
    "grpo_verl_vectorized": (
        "grpo",
        {
            "advantage": "group_verl_vectorized",
            "surrogate.dual": 3.0,
            "aggregate": "token-mean",
            "penalties.kl": VERL_KL,
        },
    ),
    "grpo_openrlhf": ("grpo", OPENRLHF),
    "dr_grpo_verl": (
        "grpo",
        {"advantage.std": "none", "surrogate.dual": 3.0, "penalties.kl": None}
        | {"aggregate": {"kind": "seq-mean-token-sum-norm", "per_row": False}},
    ),
    "dapo_trl": ("dapo", {**TRL_TOKEN, "surrogate.high": 0.2, "admission": "all", "rewards.overlong": None}),
    "dapo_verl": (
        "dapo",
        {"surrogate.dual": 10.0, "rewards.overlong.beyond": "linear", "admission.on_exhausted": "raise"},
    ),
    "dapo_openrlhf": ("dapo", {"advantage.eps": 1e-9, "admission": "mean_between", "surrogate.dual": 10.0}),
    "gspo_trl": ("gspo", {**TRL_TOKEN, "aggregate": TRL_MEAN}),
    "gspo_verl": ("gspo", {"ratio": "sequence_value", "aggregate": VERL_MEAN}),
    # its policy term is averaged by response whatever `loss_agg_mode` says; its KL term follows that mode's default
    "gspo_verl_kl": (
        "gspo",
        {"ratio": "sequence_value", "aggregate": VERL_MEAN, "penalties.kl": {**VERL_KL, "aggregate": "token-mean"}},
    ),
    "gspo_openrlhf": ("gspo", {"advantage.eps": 1e-9, "ratio.guard": None, "aggregate.eps": 1e-8}),
    "gfpo_trl": (
        "gfpo",
        {**TRL_TOKEN, "advantage.std": "unbiased", "surrogate.dual": None, "exclusions.rejected": {}}
        | {"penalties.kl": None, "penalties.entropy": None},
    ),
    "cispo_trl": ("cispo", {**TRL_TOKEN}),
    "cispo_verl": ("cispo", {"surrogate": "cispo"}),
    "rloo_verl": ("rloo", {"advantage.singleton": "raw", "surrogate.dual": 3.0, "aggregate": "token-mean"}),
    "ppo_verl": ("ppo", {"surrogate.dual": 3.0, "penalties.kl": None, "advantage.warmup_steps": 0}),
    "ppo_openrlhf": ("ppo", {"advantage": GAE_OPENRLHF, "penalties.kl": OPENRLHF_KL}),
    "ppo_trl": (
        "ppo",
        {"advantage": "gae_trl", "ratio.guard": None}
        | {"penalties.kl": {"coef": 0.05, "estimator": "k1", "place": "reward", "clamp": False}},
    ),
}

for _name, (_base, _changes) in PEERS.items():
    register_algorithm(_name, partial(variant, _name, _base, _changes))
