"""The task reward, smoothed: how high it has been and where it is. Immutable, JSON."""

from __future__ import annotations

import math

from harness.monitor.series import State

FAST, SLOW = 0.2, 0.1  # weights of the newest step in a run of 150 steps and more
FASTEST, SLOWEST = 0.7, 0.5  # ... at most, in shorter ones
PERSISTENT = math.sqrt(3.0)  # sqrt((1 + rho) / (1 - rho)), rho = .5
SETTLED = 10  # steps before the slow average can be a best


class Average(State):
    """Exponential moving average with normalised weights, so that the first value weighs no more than its share."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, alpha: float) -> Average:
        """With one more value."""
        keep = 1 - alpha
        return Average.model_construct(total=keep * self.total + alpha * value, weight=keep * self.weight + alpha)

    @property
    def value(self) -> float | None:
        """The average; None before the first value."""
        return self.total / self.weight if self.weight > 0 else None


class RewardTrack(State):
    """EMA(0.2), EMA(0.1) with its best, and the lowest reward so far."""

    fast: Average = Average()
    slow: Average = Average()
    best: float | None = None
    lowest: float | None = None
    count: int = 0

    def add(self, reward: float | None, scale: float) -> RewardTrack:
        """With one more step; a step without a reward changes nothing."""
        if reward is None:
            return self
        slow = self.slow.add(reward, min(SLOWEST, SLOW / scale))
        settled = self.count + 1 >= max(3, math.ceil(SETTLED * scale))
        return RewardTrack.model_construct(
            fast=self.fast.add(reward, min(FASTEST, FAST / scale)),
            slow=slow,
            best=_larger(self.best, slow.value) if settled else None,
            lowest=reward if self.lowest is None else min(self.lowest, reward),
            count=self.count + 1,
        )


def spread(scale: float) -> float:
    """SD of the slow average in units of one step's noise, sqrt(alpha / (2 - alpha)) if neighbours correlate by .5."""
    alpha = min(SLOWEST, SLOW / scale)
    return PERSISTENT * math.sqrt(alpha / (2 - alpha))


def _larger(a: float | None, b: float | None) -> float | None:
    known = [x for x in (a, b) if x is not None]
    return max(known) if known else None
