"""Named variants: one of the six with a published change, spelled out as the difference.

`dr_grpo` (2503.20783) neither divides by the deviation nor by the length; `bnpo` averages over the tokens of a
micro-batch (TRL); `luspo` (TRL) weighs GSPO's rows by length; `ppo_dualclip` (1912.09729) bounds the loss of
negative advantages; `cispo` (2506.13585) clips the weight and keeps every gradient; `rloo` (2402.14740) compares with
the siblings' mean; `gdpo` (2601.05242) normalises each reward component by itself; `dapo_filtered` drops truncated
responses from the loss (DAPO 3.4); `gfpo_dapo` and `gfpo_gspo` put GFPO's selection on another base.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from algorithms import dapo, gfpo, grpo, gspo, ppo
from harness.core.algorithm import Algorithm, override
from harness.core.registry import register_algorithm

BASES = {"ppo": ppo.build, "grpo": grpo.build, "dapo": dapo.build, "gspo": gspo.build, "gfpo": gfpo.build}
SHORTEST = {"siblings": 16, "selection": {"kind": "shortest", "k": 8}}

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dr_grpo": ("grpo", {"advantage.std": "none", "aggregate": "seq-mean-token-sum-norm", "penalties.kl": None}),
    "bnpo": (
        "grpo",
        {"aggregate": "token-mean", "aggregate.scope": "micro", "advantage.eps": 1e-4, "penalties.kl": None},
    ),
    "luspo": ("gspo", {"aggregate": {"kind": "seq-mean-token-sum", "count_empty": True}}),
    "ppo_dualclip": ("ppo", {"surrogate.dual": 3.0}),
    "cispo": ("grpo", {"surrogate": "cispo_capped", "aggregate": "token-mean", "penalties.kl": None}),
    "rloo": ("grpo", {"advantage": "rloo", "penalties.kl": None}),
    "gdpo": ("grpo", {"advantage": "normalize_then_sum", "advantage.eps": 1e-4, "penalties.kl": None}),
    "dapo_filtered": ("dapo", {"exclusions.truncated": {}, "rewards.overlong": None}),
    "gfpo_dapo": ("dapo", {**SHORTEST, "advantage.std": "biased"}),
    "gfpo_gspo": ("gspo", {**SHORTEST, "advantage.std": "biased"}),
}


def variant(name: str, base: str, changes: Mapping[str, Any]) -> Algorithm:
    """The base's record with the changes, under its own name."""
    record = BASES[base]() if base in BASES else variant(base, *VARIANTS[base])
    return override(record, changes).model_copy(update={"name": name})


for _name, (_base, _changes) in VARIANTS.items():
    register_algorithm(_name, partial(variant, _name, _base, _changes))
