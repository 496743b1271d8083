"""Which quantities of other trainers are ours: only those whose formulas agree; of the others it is said why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.core.metrics import ROW_COLUMNS, step_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a library's keys are in our dictionary, and why some that look alike are not."""

    same: Mapping[str, str]  # their key -> our column
    different: Mapping[str, str]  # beginning of their key -> how it differs


_UPDATE = "averaged over the updates of a step; ours are of the first, the last and the largest update"

TRL = Names(
    same={
        "reward": "reward/mean", "frac_reward_zero_std": "signal/zero_var_frac",
        "completions/mean_length": "len/mean", "completions/max_length": "len/max",
        "completions/clipped_ratio": "len/trunc_rate", "step_time": "perf/t_step", "learning_rate": "lr",
    },
    different={
        "reward_std": "mean over groups of their SD; ours is the SD of the batch",
        "entropy": "measured during the updates; ours on the sampled batch before them",
        "kl": "of the weights during the updates; ours of the old policy",
        "clip_ratio/": "counts sequences where the ratio is per sequence; ours counts tokens for every algorithm",
        "grad_norm": _UPDATE, "loss": "not comparable between algorithms",
        "num_tokens": "prompt tokens are counted too; ours are generated ones",
        "sampling/": "the definition depends on the version",
    },
)  # fmt: skip
VERL = Names(
    same={
        "critic/score/mean": "reward/mean", "response_length/mean": "len/mean", "response_length/max": "len/max",
        "timing_s/gen": "perf/t_gen", "timing_s/step": "perf/t_step", "timing_s/old_log_prob": "perf/t_logp",
        "timing_s/update_actor": "perf/t_update", "timing_s/testing": "perf/t_eval", "actor/lr": "lr",
    },
    different={
        "response_length/clip_ratio": "counts an end token at the limit as cut; ours does not",
        "critic/rewards/": "after the KL in the reward; ours before any shaping",
        "critic/vf_explained_var": "another constant in the denominator, and averaged over updates",
        "critic/vf_": _UPDATE, "critic/grad_norm": _UPDATE, "actor/": _UPDATE + "; and weighted by the loss mode",
        "training/rollout_": "differences of probabilities; ours of log-probabilities",
        "rollout_corr/": "after clamping; ours is not clamped",
        "perf/": "prompt tokens are counted too, or another unit", "critic/": _UPDATE,
    },
)  # fmt: skip
CSV = Names(same={key: key for key in step_keys() if key != "schema_version"}, different={})
LIBRARIES: Mapping[str, Names] = {"trl": TRL, "verl": VERL, "csv": CSV}
OWN = frozenset(column.key for column in ROW_COLUMNS)


def split(library: str, keys: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(their key -> our column, their key -> why it was left out)."""
    table = LIBRARIES[library]
    same = {key: table.same[key] for key in keys if key in table.same}
    left = {key: _why(table, key) for key in keys if key not in table.same}
    return same, left


def _why(table: Names, key: str) -> str:
    fitting = [start for start in table.different if key.startswith(start)]
    return table.different[max(fitting, key=len)] if fitting else "not in the metric dictionary"
