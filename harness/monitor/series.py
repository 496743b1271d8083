"""The columns that rules read, of the last steps: cut from rows of steps.jsonl or of a CSV file. Immutable, JSON."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness.core.metrics import UPDATE_SUFFIXES

KEEP = 160  # steps: a trailing window of 80 behind a gap of 20, 50 steps around an event, 60 before an onset
NONFINITE = "nonfinite"  # our own column: how many numbers of the step were NaN or infinite
TOKENS = "sampled_tokens_cum"
REWARD = "reward/mean"
ALWAYS = (REWARD, NONFINITE, TOKENS)
WORST = {"ratio/tok_q999": "max", "grad/norm_pre": "max"}  # of a step's updates; the others: the last one
HARD = ("loss/", "grad/", REWARD)  # columns in which a NaN or an infinity is a failure, not a gap


class State(BaseModel):
    """Base of everything that is remembered from step to step: frozen, and plain JSON in a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Series(State):
    """Values by column, None where nothing was measured; the newest last."""

    steps: tuple[int, ...] = ()
    columns: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)

    def add(self, step: int, values: Mapping[str, float | None], keep: int = KEEP) -> Series:
        """With one more step, without those that are too old."""
        columns = {key: (*old[1 - keep :], values.get(key)) for key, old in self.columns.items()}
        absent = (None,) * min(len(self.steps), keep - 1)
        columns |= {key: (*absent, value) for key, value in values.items() if key not in columns}
        return Series.model_construct(steps=(*self.steps[1 - keep :], step), columns=columns)

    def between(self, key: str, first: int, last: int) -> list[float]:
        """The known values of the steps first..last."""
        column = self.columns.get(key)
        if column is None or last < first:
            return []
        a, b = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        return [x for x in column[a:b] if x is not None]

    def window(self, keys: Iterable[str], first: int, last: int) -> dict[str, list[float | None]]:
        """What happened around an event: the steps first..last, as `step`, and the columns."""
        a, b = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        found: dict[str, list[float | None]] = {"step": [float(s) for s in self.steps[a:b]]}
        return found | {key: list(self.columns[key][a:b]) for key in keys if key in self.columns}


def number(value: Any) -> float | None:
    """A finite number, else None; whatever else stands in a row is not measured."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def read(row: Mapping[str, Any], key: str) -> float | None:
    """One metric of a row: under its own name, or at the worst or last, any other, of the step's updates."""
    found = number(row.get(key))
    if found is not None:
        return found
    for suffix in (WORST.get(key, "last"), *UPDATE_SUFFIXES):
        found = number(row.get(f"{key}/{suffix}"))
        if found is not None:
            return found
    return None


def measured(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float | None]:
    """The values of the columns that are in the row."""
    found: dict[str, float | None] = {key: value for key in keys if (value := read(row, key)) is not None}
    return found | {NONFINITE: float(nonfinite(row))}


def nonfinite(row: Mapping[str, Any]) -> int:
    """NaN and infinities of loss, gradient, logits and reward: the counters of the row, and its raw cells."""
    counted = sum(int(n) for k, v in row.items() if k.startswith("health/nonfinite_") and (n := number(v)))
    cells = (v for k, v in row.items() if k.startswith((*HARD, "health/nonfinite_")))
    return counted + sum(isinstance(v, float) and not math.isfinite(v) for v in cells)
