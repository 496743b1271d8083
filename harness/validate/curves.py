"""Curves with a known truth, and how a fault bends them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = dict[str, Array]  # metric -> value per step; NaN = not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong, and from which step on."""

    type: str
    onset: int  # first step at which the noise-free curve leaves the healthy one
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run: what was logged, and the same without noise or gaps."""

    name: str
    horizon: int  # planned steps; a fault's curve is cut some time after its onset
    logged: Columns
    clean: Columns
    fault: Fault | None
    solved: bool = False  # healthy, with all groups right and hardly any entropy in the end

    @property
    def length(self) -> int:
        """Steps that are there."""
        return len(next(iter(self.logged.values())))

    def rows(self, columns: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """As rows of steps.jsonl: None where nothing was measured."""
        names = list(columns)
        for index, values in enumerate(zip(*(columns[name].tolist() for name in names), strict=True)):
            row: dict[str, Any] = {n: None if v != v else v for n, v in zip(names, values, strict=True)}
            yield {"step": index + 1, "budget_fraction": (index + 1) / self.horizon, **row}


def bent(healthy: Array, target: float, weight: Array) -> Array:
    """From the healthy course to a level, in logarithms where both are positive: weight 0 -> 1."""
    if target > 0 and bool((healthy > 0).all()):
        return np.asarray(np.exp((1 - weight) * np.log(healthy) + weight * np.log(target)))
    return np.asarray((1 - weight) * healthy + weight * target)


def straight(healthy: Array, target: float, weight: Array) -> Array:
    """The same along a straight line."""
    return np.asarray((1 - weight) * healthy + weight * target)


def ar1(rng: np.random.Generator, size: int, sd: float, rho: float) -> Array:
    """Stationary first-order noise with the given SD."""
    shocks = rng.normal(0, sd * np.sqrt(1 - rho**2), size)
    values = np.empty(size)
    level = rng.normal(0, sd)
    for i, shock in enumerate(shocks):
        level = rho * level + shock
        values[i] = level
    return values


def shares(values: Array) -> Array:
    """Into [0, 1]."""
    return np.asarray(np.clip(values, 0.0, 1.0))


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]
