"""Named arms of a comparison: a preset, what is changed in it, and the bracket it is ranked in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from algorithms import rosters
from harness.core.algorithm import Algorithm, override
from harness.core.errors import UsageError, near
from harness.core.registry import algorithm as preset

Bracket = Literal["outcome", "dense", "control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm; `overrides` apply on top of the roster's."""

    algorithm: str  # name of the preset
    overrides: Mapping[str, Any] = field(default_factory=dict)
    bracket: Bracket = "outcome"  # arms with different reward information are never ranked together
    recipe: Mapping[str, Any] = field(default_factory=dict)  # recipe values of its own; controls only
    backend: Mapping[str, Any] = field(default_factory=dict)  # likewise, by dotted path


# GSPO's range in units of the drift's standard deviation. 1 : 4/3 keeps the published proportion 3e-4 : 4e-4; if log s
# is normal, one SD below and 4/3 above clip about an eighth of the rows, near the 0.15 of tokens the paper reports.
CALIBRATED: Mapping[str, Any] = {"surrogate.kappa_low": 1.0, "surrogate.kappa_high": 4 / 3}

ARMS: Mapping[str, Arm] = {
    "ppo": Arm(algorithm="ppo"),
    "grpo": Arm(algorithm="grpo"),
    "dapo": Arm(algorithm="dapo"),
    "gspo": Arm(algorithm="gspo"),
    "gspo_token": Arm(algorithm="gspo_token"),
    "gfpo": Arm(algorithm="gfpo"),
    "gspo_calibrated": Arm(algorithm="gspo", overrides=CALIBRATED),
    "gfpo_shortest": Arm(algorithm="gfpo"),
    "gfpo_efficiency": Arm(algorithm="gfpo", overrides={"selection": "token_efficiency"}),
    "gfpo_adaptive": Arm(algorithm="gfpo", overrides={"selection": "adaptive"}),
    "gfpo_random": Arm(algorithm="gfpo", overrides={"selection": "random"}),
    "ppo_dualclip": Arm(algorithm="ppo", overrides={"surrogate.dual": 3.0}),
    "ppo_siblings1": Arm(algorithm="ppo", overrides={"siblings": 1, "prompts_factor": 8}),
    "gspo_token_process": Arm(algorithm="gspo_token", overrides={"advantage": "process"}, bracket="dense"),
    "gspo_token_process_calibrated": Arm(
        algorithm="gspo_token", overrides={"advantage": "process", **CALIBRATED}, bracket="dense"
    ),
    "grpo_process": Arm(algorithm="grpo", overrides={"advantage": "process"}, bracket="dense"),
    "gspo_token_turns": Arm(algorithm="gspo_token", overrides={"advantage": "turns"}, bracket="dense"),
    "gspo_token_turns_calibrated": Arm(
        algorithm="gspo_token", overrides={"advantage": "turns", **CALIBRATED}, bracket="dense"
    ),
    "grpo_turns": Arm(algorithm="grpo", overrides={"advantage": "turns"}, bracket="dense"),
    "ppo_turns": Arm(algorithm="ppo", overrides={"advantage.rewards": "turns"}, bracket="dense"),
    **{
        f"{name}_replay_{mode}": Arm(algorithm=name, overrides={"routing_replay": mode})
        for name in ("grpo", "gspo")
        for mode in ("off", "r2", "r3")
    },
    "base": Arm(algorithm="base", bracket="control"),
    "random_reward": Arm(algorithm="random_reward", bracket="control"),
    "rft": Arm(algorithm="rft", bracket="control"),
    "grpo_batch_std": Arm(algorithm="grpo_batch_std", bracket="control"),
    # GRPO that samples with the very weights it trains and divides by the log-probs of that sampling: whatever engine
    # the others have, it has no mismatch but the rounding of two forwards
    "zero_mismatch": Arm(
        algorithm="grpo",
        overrides={"old_logp": "rollout"},
        bracket="control",
        backend={"sampler": "transformers", "engine.dtype": None, "engine.server": None},
    ),
    # GRPO in all but its learning rate: what still changes is the noise floor of engine and evaluation
    "canary_lr0": Arm(algorithm="grpo", bracket="control", recipe={"lr": 0.0}),
}


def arm(name: str) -> Arm:
    """The arm of that name."""
    if name not in ARMS:
        raise UsageError(f"arm {name!r}", "there is no such arm", near(name, ARMS))
    return ARMS[name]


def arm_overrides(name: str, roster: str = "matched") -> dict[str, Any]:
    """All changes to the arm's preset under a roster; an arm's own value wins over the roster's."""
    chosen = arm(name)
    return {**rosters.overrides(roster, chosen.algorithm), **chosen.overrides}


def build_arm(name: str, roster: str = "matched") -> Algorithm:
    """The arm's record under a roster; it keeps its preset's name."""
    return override(preset(arm(name).algorithm), arm_overrides(name, roster))


def equivalent_to(algorithm: Algorithm) -> str | None:
    """The preset that a record equals by mathematics, e.g. GSPO-token with row-constant advantages is "gspo"."""
    if algorithm.ratio.kind == "sequence_value" and algorithm.surrogate.clips and not algorithm.advantage.per_token:
        return "gspo"
    return None
