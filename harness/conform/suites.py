"""Suite name -> adapter. A suite that is not here is an error, never a skip."""

from __future__ import annotations

from collections.abc import Mapping

from harness.conform import losses, pieces
from harness.conform.losses import Adapter
from harness.core.errors import UsageError, near

_LOSSES: dict[Adapter, tuple[str, ...]] = {
    losses.verl_group: (
        "grpo_verl_paper",
        "grpo_verl_default",
        "grpo_verl_k3plus",
        "grpo_verl_token_sum",
        "grpo_verl_rollout_is",
        "drgrpo_verl",
        "dapo_verl",
        "gspo_verl",
        "gspo_verl_kl",
        "gspo_verl_rollout_is",
        "gspo_token_verl",
        "cispo_verl",
    ),
    losses.verl_ppo: ("ppo_verl_plain", "ppo_verl_dualclip"),
    losses.trl_group: (
        "grpo_trl",
        "grpo_trl_biaskl",
        "grpo_trl_batchstd",
        "grpo_trl_multi",
        "grpo_trl_twosided",
        "bnpo_trl",
        "drgrpo_trl",
        "dapo_trl",
        "dapo_trl_accum",
        "gdpo_trl",
        "gspo_trl",
        "gspo_trl_kl",
        "gspo_trl_dapo_agg",
        "gspo_token_trl",
        "gspo_token_trl_uniform",
        "luspo_trl",
        "cispo_trl",
    ),
    losses.trl_ppo: ("ppo_trl",),
    losses.gfpo_trl: ("gfpo_trl_shortest", "gfpo_trl_token_efficiency"),
    losses.gfpo_paper: ("gfpo_paper_shortest", "gfpo_paper_token_efficiency"),
    losses.openrlhf: ("ppo_openrlhf", "ppo_openrlhf_dualclip", "grpo_openrlhf", "gspo_openrlhf"),
}
_PIECES: dict[Adapter, tuple[str, ...]] = {
    pieces.singleton: ("adv_grpo_verl_singleton",),
    pieces.vectorized: ("adv_grpo_verl_vectorized",),
    pieces.rloo: ("adv_rloo_verl",),
    pieces.gae: ("gae_verl",),
    pieces.aggregate: (
        "agg_verl_token-mean",
        "agg_verl_seq-mean-token-mean",
        "agg_verl_seq-mean-token-sum",
        "agg_verl_seq-mean-token-sum-norm",
    ),
    pieces.kl_verl: (
        "kl_verl_k1",
        "kl_verl_abs",
        "kl_verl_k2",
        "kl_verl_k3",
        "kl_verl_low_var_kl",
        "kl_verl_k1plus",
        "kl_verl_k3plus",
    ),
    pieces.kl_openrlhf: ("kl_openrlhf_k1", "kl_openrlhf_k2", "kl_openrlhf_k3"),
    pieces.adaptive_kl: ("adaptive_kl_verl",),
    pieces.overlong: ("overlong_verl",),
    pieces.overlong_filter: ("overlong_filter_trl",),
    pieces.dynamic_recipe: ("dynamic_sampling_recipe",),
    pieces.dynamic_openrlhf: ("dynamic_sampling_openrlhf",),
    pieces.adaptive_k: ("gfpo_adaptive_k",),
    pieces.routes: (
        "routing_replay_verl_softmax_post",
        "routing_replay_verl_softmax_pre",
        "routing_replay_verl_sigmoid",
    ),
}
SUITES: Mapping[str, Adapter] = {
    name: adapter for table in (_LOSSES, _PIECES) for adapter, names in table.items() for name in names
}
LOSS_SUITES = frozenset(name for names in _LOSSES.values() for name in names)


def adapter(suite: str) -> Adapter:
    """The adapter of a suite."""
    if suite not in SUITES:
        raise UsageError(
            f"golden suite {suite!r}", "there is no adapter for it, and none is skipped", near(suite, SUITES)
        )
    return SUITES[suite]
