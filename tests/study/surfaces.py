"""Searches whose answer is known: a planted surface with its optimum and its cliff, and the plan over it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.core.search import Dimension, Searched, SearchRecord
from harness.core.spec import BackendSpec
from harness.models.recipes import held_out, recipe
from harness.study.build import Choices, build
from tests.fakes.planted import Leaves, Surface

SMALL = Choices(preset="quick", arms=("grpo",), seeds=(0, 1, 2), budget={"steps": 3}, sets=("eval.points=5",))
SPACE = (
    Dimension(path="recipe.lr", low=3e-5, high=3e-3, log=True),
    Dimension(path="surrogate.high", low=0.05, high=0.5, log=True),
)


def peak(flat: Leaves) -> float:
    """Best, .3, at lr 1e-3 and clip .1; .16 less at the defaults."""
    lr = math.log10(flat["recipe.lr"] / 1e-3)
    clip = math.log10(flat["surrogate.high"] / 0.1)
    return 0.3 - 0.35 * lr**2 - 0.35 * clip**2


def cliff(flat: Leaves) -> float:
    """Collapse above lr 1.5e-3, where the start is the fastest."""
    return math.log(flat["recipe.lr"] / 1.5e-3)


SURFACE = Surface(gain=peak, cliff=cliff)


def record(trials: int = 12, space: tuple[Dimension, ...] = SPACE, **changes: Any) -> SearchRecord:
    spec = build(SMALL, recipe, held_out, lambda s: BackendSpec(threads=1)).spec
    arm = spec.arms[0]
    searched = Searched(arm=arm, space=space, folder="grpo", optuna_study="t/grpo")
    data: dict[str, Any] = {
        "name": "t", "final": spec, "searched": (searched,), "tuning_seeds": (1000, 1001), "trials": trials,
        "sampler": "tpe", "top": 3,
    }  # fmt: skip
    return SearchRecord(**(data | changes))


def journal(folder: Path) -> str:
    """A third of sqlite's time."""
    return f"journal:{folder / 'optuna.log'}"
