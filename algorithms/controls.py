"""Controls: arms that tell what a gain is worth. They are compared with, never ranked among, the algorithms.

`base` never updates. `random_reward` is GRPO on coin flips (2506.10947). `rft` is rejection-sampling fine-tuning:
maximum likelihood on correct responses at the same sampled tokens. `grpo_batch_std` is GRPO with group mean, batch
std and token loss, the recipe of "Part I: Tricks or Traps?" (2508.08221).
"""

from __future__ import annotations

from algorithms import grpo
from harness.core.algorithm import Algorithm, override
from harness.core.registry import register_algorithm


def base() -> Algorithm:
    """The initial model, sampled and graded but never trained."""
    return _as("base", {"updates.epochs": 0, "penalties.kl": None})


def random_reward() -> Algorithm:
    """GRPO with the reward replaced by a fair coin."""
    return _as("random_reward", {"rewards.random": {}})


def rft() -> Algorithm:
    """Maximum likelihood on correct responses, averaged over tokens of the whole batch."""
    return _as(
        "rft", {"advantage": "correct", "surrogate": "likelihood", "aggregate": "token-mean", "penalties.kl": None}
    )


def grpo_batch_std() -> Algorithm:
    """GRPO centred by group, scaled by the batch's standard deviation, averaged over tokens, without KL."""
    return _as("grpo_batch_std", {"advantage.scope": "batch", "aggregate": "token-mean", "penalties.kl": None})


def _as(name: str, changes: dict[str, object]) -> Algorithm:
    return override(grpo.build(), changes).model_copy(update={"name": name})


for _build in (base, random_reward, rft, grpo_batch_std):
    register_algorithm(_build.__name__, _build)
