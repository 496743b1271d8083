"""Rosters: which values the arms of a comparison take.

`published` is each preset as its paper has it. `matched` holds everything equal except the slots that define the
algorithm: no KL, no entropy bonus, no dual clip, G = 8 gradient rows per prompt, unbiased std. Otherwise "GRPO
against GSPO" is a verdict on beta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from harness.core.errors import UsageError, near

Roster = Literal["published", "matched"]
ROSTERS: tuple[Roster, ...] = ("published", "matched")

GRPO_BASELINE: Mapping[str, Any] = {
    "penalties.kl": None,
    "surrogate.high": 0.27,  # GSPO's own GRPO baseline, section 5.1
}

MATCHED: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"penalties.kl": None},
    "grpo": GRPO_BASELINE,
    "dapo": {},  # published .2/.28, no KL
    "gspo": {},
    "gspo_token": {},
    # samples 16 and keeps 8, so that as many rows carry a gradient as in the other arms; its base is GRPO
    "gfpo": {
        **GRPO_BASELINE,
        "penalties.entropy": None,
        "surrogate.dual": None,
        "advantage.std": "unbiased",
        "aggregate": "seq-mean-token-mean",
    },
    "random_reward": GRPO_BASELINE,
    "grpo_batch_std": {"surrogate.high": 0.27},
}


def overrides(roster: str, algorithm: str) -> dict[str, Any]:
    """Dotted path -> value that turns a preset into the roster's arm; empty where the preset stands as it is."""
    if roster not in ROSTERS:
        raise UsageError(f"roster {roster!r}", "there is no such roster", near(roster, ROSTERS))
    return dict(MATCHED.get(algorithm, {})) if roster == "matched" else {}
