"""The run fell under what it started from, whether it had risen or not: a collapse, not a run that never learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from harness.core.results import Severity
from harness.monitor.detectors.reward_collapse import REGAINED, fell, share
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.series import REWARD
from harness.monitor.view import View


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BelowBase(Rule):
    """The held-out score is under 50 % of the step-0 score, by the lower bound of the paired difference.

    Twice in a row; an evaluation of 2,000 samples counts as two.
    """

    type: ClassVar[str] = "below_base"
    rule_id: ClassVar[str] = "below_base"
    watches: ClassVar[tuple[str, ...]] = (REWARD,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=2, n=2, clear=2, lasting=True)
    severity: ClassVar[Severity] = "COLLAPSE"
    source: ClassVar[Literal["steps", "scores"]] = "scores"

    def flag(self, view: View) -> bool | None:
        return view.scores.points[-1].under_base if view.scores.points else None

    def clear(self, view: View) -> bool | None:
        return view.scores.points[-1].recovered if view.scores.points else None

    def reference(self, view: View, key: str) -> float | None:
        return view.start(key)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBelowBase(Rule):
    """EMA(0.2) of the task reward < 50 % of its step-0 value, by more than noise; needs no evaluation."""

    type: ClassVar[str] = "below_base"
    rule_id: ClassVar[str] = "below_base.reward"
    watches: ClassVar[tuple[str, ...]] = (REWARD,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=8, n=10, clear=10)
    severity: ClassVar[Severity] = "COLLAPSE"

    def flag(self, view: View) -> bool | None:
        base = view.start(REWARD)
        return None if base is None or view.now(REWARD) is None else fell(view, base)

    def clear(self, view: View) -> bool | None:
        base = view.start(REWARD)
        part = None if base is None or view.now(REWARD) is None else share(view, base)
        return None if part is None else part > REGAINED

    def reference(self, view: View, key: str) -> float | None:
        return view.start(key)
