"""The run had learned something and lost it: on the training reward, and on the held-out score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.series import REWARD
from harness.monitor.smooth import spread
from harness.monitor.view import View, all_of

LOST, REGAINED = 0.5, 0.8  # of the best
RISEN = 3.0  # standard errors above the base
OF_START = 0.5  # error of a step-0 value that is the median of the first three, in units of one step's noise
ROUNDING = 1e-9
FELL = 2.0  # noises of a step below the best, so that a wobble around 0 is no collapse
FELL_BLIND = 4.0  # ... where rewards are negative and the task's range is unknown


def margin(view: View) -> float | None:
    """3 standard errors of (best average - base): those of the average and of the step-0 value, as a number."""
    noise = view.noise()
    if noise is None:
        return None
    base = view.scores.start_error() if view.scores.at_start(REWARD) is not None else OF_START * noise
    return RISEN * math.hypot(base, spread(view.scale) * noise)


def risen(view: View) -> bool | None:
    """Whether the best EMA(0.1) of the task reward lies more than 3 standard errors above its base."""
    base, best, error = view.start(REWARD), view.reward.best, margin(view)
    return None if base is None or best is None or error is None else best - base > error + ROUNDING * abs(base)


def lowest(view: View) -> float:
    """The zero from which shares of the reward count: the task's lowest reward, or else the lowest one seen, if < 0."""
    return view.reward_low if view.reward_low is not None else min(0.0, view.reward.lowest or 0.0)


def share(view: View, of: float) -> float | None:
    """EMA(0.2) of the reward as a share of `of`."""
    now, low = view.reward.fast.value, lowest(view)
    return None if now is None or of <= low else (now - low) / (of - low)


def fell(view: View, of: float) -> bool | None:
    """Whether EMA(0.2) lies under half of `of`, by more than the noise of a step can do."""
    part, now, noise = share(view, of), view.reward.fast.value, view.noise()
    if part is None or now is None or noise is None:
        return None
    guessed = view.reward_low is None and lowest(view) < 0  # a new low is then always next to nothing
    return part < LOST and of - now > (FELL_BLIND if guessed else FELL) * noise


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCollapse(Rule):
    """EMA(0.2) of the task reward < 50 % of its best EMA(0.1), which lies 3 standard errors above the base."""

    type: ClassVar[str] = "reward_collapse"
    rule_id: ClassVar[str] = "reward_collapse"
    watches: ClassVar[tuple[str, ...]] = (REWARD,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=8, n=10, clear=10)
    severity: ClassVar[Severity] = "COLLAPSE"

    def flag(self, view: View) -> bool | None:
        best = view.reward.best
        return None if view.now(REWARD) is None or best is None else all_of(risen(view), fell(view, best))

    def clear(self, view: View) -> bool | None:
        best = view.reward.best
        part = None if best is None or view.now(REWARD) is None else share(view, best)
        return None if part is None else part > REGAINED

    def reference(self, view: View, key: str) -> float | None:
        return view.reward.best


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCollapse(Rule):
    """The held-out score is under 50 % of its best in two evaluations in a row, after a rise of the reward."""

    type: ClassVar[str] = "reward_collapse"
    rule_id: ClassVar[str] = "reward_collapse.held_out"
    watches: ClassVar[tuple[str, ...]] = (REWARD,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=2, n=2, clear=2, lasting=True)
    severity: ClassVar[Severity] = "COLLAPSE"
    source: ClassVar[Literal["steps", "scores"]] = "scores"

    def flag(self, view: View) -> bool | None:
        return view.scores.points[-1].lost and bool(risen(view)) if view.scores.points else None

    def clear(self, view: View) -> bool | None:
        return view.scores.points[-1].regained if view.scores.points else None

    def reference(self, view: View, key: str) -> float | None:
        return view.scores.best
