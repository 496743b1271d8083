"""What a rule may look at: this step, the healthy baseline, the trailing median, the held-out scores.

Baselines (steps counted from the run's first): until step 25 the value at step 0, afterwards the median of the steps
5-25; trailing: the median of a window that ends before a gap, so that an anomaly does not contaminate it. Both stay as
they were at the first flagged step for as long as a rule is suspicious. Windows shrink with the run (`scale`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from harness.monitor.scores import Scores
from harness.monitor.series import REWARD, Series
from harness.monitor.smooth import RewardTrack

FULL = 150  # rollout steps; shorter runs have proportionally shorter windows
WARM_UP = 5  # first steps that are left out of the baseline
EARLY = 25  # last step of the baseline
START = 3  # first steps whose median stands in for step 0
FEWEST = 3  # values that a median needs


def scaled(size: int, scale: float, least: int = 1) -> int:
    """A number of steps in a run of T < 150 steps: size T / 150, rounded up."""
    return max(least, math.ceil(size * scale - 1e-9))


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of both where there are two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def any_of(*flags: bool | None) -> bool | None:
    """Three-valued or: None where nothing is known."""
    return True if True in flags else None if all(f is None for f in flags) else False


def all_of(*flags: bool | None) -> bool | None:
    """Three-valued and over what is known: None where nothing is."""
    return False if False in flags else None if all(f is None for f in flags) else True


def above(value: float | None, limit: float | None) -> bool | None:
    """value > limit, None where either is unknown."""
    return None if value is None or limit is None else value > limit


def below(value: float | None, limit: float | None) -> bool | None:
    """value < limit, None where either is unknown."""
    return None if value is None or limit is None else value < limit


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One step of a run as rules see it."""

    series: Series  # the last steps, this one included
    early: Series  # the first 25 steps
    reward: RewardTrack
    scores: Scores
    scale: float  # T / 150, at most 1
    anchor: int  # step at which baselines are taken: this one, or the first flagged one
    siblings: int | None = None
    reward_low: float | None = None  # of the task's range
    known: dict[tuple[str, int, int, int], float | None] = field(default_factory=dict)  # medians taken already

    def at(self, anchor: int) -> View:
        """The same step with baselines as of an earlier one."""
        return self if anchor == self.anchor else replace(self, anchor=anchor)

    @property
    def step(self) -> int:
        """This step."""
        return self.series.steps[-1]

    def age(self, step: int) -> int:
        """1 for the run's first step."""
        return step - self.early.steps[0] + 1

    def warm(self) -> bool:
        """Whether the steps of the baseline are over."""
        return self.age(self.step) > scaled(EARLY, self.scale, START)

    def now(self, key: str) -> float | None:
        """The value of this step."""
        column = self.series.columns.get(key)
        return column[-1] if column else None

    def start(self, key: str) -> float | None:
        """The value at step 0: from the held-out evaluation where it has 2,000 samples, else of the first steps."""
        held_out = self.scores.at_start(key)
        if held_out is not None:
            return held_out
        column = [x for x in self.early.columns.get(key, ()) if x is not None]
        return median(column[:START]) if column else None

    def baseline(self, key: str) -> float | None:
        """The healthy level: of step 0 until step 25, then the median of the steps 5-25."""
        last = scaled(EARLY, self.scale, START)
        if self.age(self.anchor) <= last:
            return self._once((key, -1, 0, 0))
        return self._once((key, 0, 0, 0))

    def trailing(self, key: str, window: int = 50, gap: int = 10) -> float | None:
        """Median of `window` steps that end `gap` steps ago; the baseline until there is a fifth of them."""
        return self._once((key, window, gap, self.anchor))

    def noise(self, key: str = REWARD) -> float | None:
        """SD of one step about its level, 1.4826 x the median absolute change (neighbours correlated by .5)."""
        return self._once((key, -2, 0, self.anchor))

    def _once(self, name: tuple[str, int, int, int]) -> float | None:
        if name not in self.known:
            self.known[name] = self._median(*name)
        return self.known[name]

    def _median(self, key: str, window: int, gap: int, anchor: int) -> float | None:
        first = self.early.steps[0]
        if window == -1:
            return self.start(key)
        if window == 0:
            a, b = scaled(WARM_UP, self.scale), scaled(EARLY, self.scale, START)
            found = self.early.between(key, first + a - 1, first + b - 1)
            return median(found) if len(found) >= FEWEST else self.start(key)
        if window == -2:
            return self._change(key, anchor)
        end = anchor - scaled(gap, self.scale)
        size = scaled(window, self.scale, FEWEST)
        found = self.series.between(key, end - size + 1, end)
        return median(found) if len(found) >= max(FEWEST, size // 5) else self.baseline(key)

    def _change(self, key: str, anchor: int) -> float | None:
        found = self.series.between(key, anchor - 60, anchor - 1)
        changes = [abs(b - a) for a, b in pairwise(found)]
        return 1.4826 * median(changes) if len(changes) >= FEWEST else None
