"""Loop-style re-statements from the papers, in NumPy, with gradients written by hand.

They never import the code under test. Lists of rows; a row is a list of tokens; only response tokens are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = Sequence[float]
Array = NDArray[np.float64]


def group_advantages(rewards: Row, groups: Sequence[int], ddof: int, eps: float) -> list[float]:
    """(R - mean) / (std + eps) in each group; 0 for a group of one."""
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        siblings = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mean = sum(siblings) / len(siblings)
        if len(siblings) <= ddof:
            result.append(0.0)
            continue
        variance = sum((r - mean) ** 2 for r in siblings) / (len(siblings) - ddof)
        result.append((reward - mean) / (math.sqrt(variance) + eps))
    return result


def gae_row(rewards: Row, values: Row, gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, summed term by term."""
    n = len(rewards)
    delta = [rewards[t] + (gamma * values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, n)) for t in range(n)]


def later_steps(steps: Sequence[tuple[int, float]], length: int) -> list[float]:
    """At t: mean of the values of steps (end, value) that end at or after t."""
    result = []
    for t in range(length):
        later = [value for end, value in steps if end >= t]
        result.append(sum(later) / len(later) if later else 0.0)
    return result


def clip_token(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> tuple[float, bool]:
    """Loss of one token, and whether it passes no gradient."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    loss, blocked = -min(ratio * advantage, bounded * advantage), bounded * advantage < ratio * advantage
    if dual is not None and advantage < 0 and loss > -dual * advantage:
        loss, blocked = -dual * advantage, True
    return loss, blocked


def token_clip_loss(
    logp: Sequence[Row], old: Sequence[Row], adv: Sequence[Row], low: float, high: float, dual: float | None, mean: str
) -> tuple[float, list[Array]]:
    """PPO, GRPO and DAPO objectives: loss and gradient; `mean` is "token" or "sequence"."""
    tokens = max(sum(len(row) for row in logp), 1)
    rows = sum(bool(row) for row in logp)
    total, grads = 0.0, []
    for new_row, old_row, adv_row in zip(logp, old, adv, strict=True):
        grad = np.zeros(len(new_row))
        weight = 1 / tokens if mean == "token" else 1 / (max(len(new_row), 1) * rows)
        for t, (a, b, c) in enumerate(zip(new_row, old_row, adv_row, strict=True)):
            ratio = math.exp(a - b)
            loss, blocked = clip_token(ratio, c, low, high, dual)
            total += weight * loss
            grad[t] = 0.0 if blocked else -weight * c * ratio
        grads.append(grad)
    return total, grads


def gspo_loss(logp: Sequence[Row], old: Sequence[Row], adv: Row, low: float, high: float) -> tuple[float, list[Array]]:
    """GSPO Eq. 5 with one advantage per row: loss and gradient."""
    rows = sum(bool(row) for row in logp)
    total, grads = 0.0, []
    for new_row, old_row, advantage in zip(logp, old, adv, strict=True):
        if not new_row:
            grads.append(np.zeros(0))
            continue
        s = math.exp(sum(a - b for a, b in zip(new_row, old_row, strict=True)) / len(new_row))
        loss, blocked = clip_token(s, advantage, low, high, None)
        total += loss / rows
        grads.append(np.full(len(new_row), 0.0 if blocked else -advantage * s / (len(new_row) * rows)))
    return total, grads
