"""Counter-based random numbers: a value depends on its key alone, never on what was drawn before.

SplitMix64 (Steele, Lea & Flood 2014) keyed by a tuple of counters, so the uniform of (seed pair, rollout, prompt,
sample, turn, position) is the same in every arm, batch order and process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def counter(text: str) -> int:
    """A 64-bit counter for a name or an id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(keys: Sequence[Sequence[int]], length: int) -> NDArray[np.float64]:
    """Uniforms in [0, 1), `[len(keys), length]`; row i depends on `keys[i]` alone."""
    columns = np.array([[k & _MASK for k in key] for key in keys], dtype=np.uint64).reshape(len(keys), -1)
    with np.errstate(over="ignore"):
        state = np.full(len(keys), 0x243F6A8885A308D3, dtype=np.uint64)
        for column in columns.T:
            state = _mix((state ^ column) + _GOLDEN)
        counters = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(_mix(state[:, None] + counters[None, :]))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: Sequence[int], size: int) -> NDArray[np.int64]:
    """A random order of range(size)."""
    return np.argsort(uniforms([key], size)[0], kind="stable")


def integer(key: Sequence[int], bound: int) -> int:
    """A random integer in [0, bound)."""
    return int(uniforms([key], 1)[0, 0] * bound)
