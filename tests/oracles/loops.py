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


def k3_token_mean(logp: Sequence[Row], ref: Sequence[Row]) -> tuple[float, list[list[float]]]:
    """Mean over all tokens of exp(-d) + d - 1, d = logp - ref, and its gradient (1 - exp(-d)) / N."""
    tokens = sum(len(row) for row in logp)
    gaps = [[new - old for new, old in zip(a, b, strict=True)] for a, b in zip(logp, ref, strict=True)]
    total = sum(math.exp(-d) + d - 1 for row in gaps for d in row)
    return total / max(tokens, 1), [[(1 - math.exp(-d)) / tokens for d in row] for row in gaps]


def leave_one_out(rewards: Row, groups: Sequence[int]) -> list[float]:
    """RLOO: reward minus the mean reward of the others in the group; 0 for a group of one."""
    result = []
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        others = [r for j, (r, g) in enumerate(zip(rewards, groups, strict=True)) if g == group and j != i]
        result.append(reward - sum(others) / len(others) if others else 0.0)
    return result


def normalize_then_sum(columns: Sequence[Row], weights: Row, groups: Sequence[int], eps: float) -> list[float]:
    """GDPO: z-score of every function in its group, weighted sum, z-score over the batch; NaN abstains."""
    sums: list[float | None] = [None] * len(groups)
    for column, weight in zip(columns, weights, strict=True):
        known = [i for i, r in enumerate(column) if not math.isnan(r)]
        z = group_advantages([column[i] for i in known], [groups[i] for i in known], 1, eps)
        for i, value in zip(known, z, strict=True):
            sums[i] = (sums[i] or 0.0) + weight * value
    usable = [s for s in sums if s is not None]
    batch = iter(group_advantages(usable, [0] * len(usable), 1, eps))
    return [0.0 if s is None else next(batch) for s in sums]


def rollout_weights(old: Row, behaviour: Row, level: str, mode: str, cap: float) -> list[float]:
    """Truncated (or masked) importance weights of one row."""
    gaps = [a - b for a, b in zip(old, behaviour, strict=True)]
    if level == "sequence":
        gaps = [sum(gaps)] * len(gaps)
    raw = [math.exp(min(max(g, -20.0), 20.0)) for g in gaps]
    return [min(w, cap) if mode == "truncate" else (0.0 if w > cap else w) for w in raw]


def gae_with_observations(rewards: Row, values: Row, mask: Sequence[bool], gamma: float, lam: float) -> list[float]:
    """OpenRLHF: masked positions hold reward 0 and value 0 but cost gamma lambda; term by term."""
    r = [x if m else 0.0 for x, m in zip(rewards, mask, strict=True)]
    v = [x if m else 0.0 for x, m in zip(values, mask, strict=True)] + [0.0]
    n = len(r)
    delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, n)) for t in range(n)]


def cispo_gradient(logp: Row, old: Row, adv: Row, low: float | None, high: float) -> list[float]:
    """- clip(r) A per token: the weight is a constant."""
    ratios = [math.exp(a - b) for a, b in zip(logp, old, strict=True)]
    return [-min(max(r, 0.0 if low is None else low), high) * a for r, a in zip(ratios, adv, strict=True)]


def gates(logits: Row, chosen: Sequence[int], score: str) -> list[float]:
    """Router gates of the chosen experts, 0 elsewhere."""
    if score == "softmax_post":
        raw = {e: math.exp(logits[e]) for e in chosen}
        total = sum(raw.values())
    elif score == "softmax_pre":
        raw = {e: math.exp(logits[e]) for e in chosen}
        total = sum(math.exp(x) for x in logits)
    else:
        raw = {e: 1 / (1 + math.exp(-logits[e])) for e in chosen}
        total = sum(raw.values()) if len(chosen) > 1 else 1.0
    return [raw.get(e, 0.0) / total for e in range(len(logits))]
