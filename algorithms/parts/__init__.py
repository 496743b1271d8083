"""The bundled parts, one file per slot; importing this package registers them."""

from algorithms.parts import (
    admission,
    advantages,
    aggregates,
    corrections,
    exclusions,
    faults,
    multireward,
    penalties,
    quirks,
    ratios,
    rewards,
    selection,
    surrogates,
)

__all__ = [
    "admission",
    "advantages",
    "aggregates",
    "corrections",
    "exclusions",
    "faults",
    "multireward",
    "penalties",
    "quirks",
    "ratios",
    "rewards",
    "selection",
    "surrogates",
]
