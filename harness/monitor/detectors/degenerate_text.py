"""Responses loop, or all siblings say the same while the reward is not at its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.reward_collapse import share
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

LOOPS, SAME = "text/rep_rate", "text/distinct_in_group"
LIMIT, GROWTH = 0.2, 0.15  # share of repetitive responses; or this much above the baseline
FEW = 0.1  # distinct responses per group of many; a group of G has at least one, 1 / G
ALL_ALIKE = 1.1  # x 1 / G
AT_BEST = 0.9  # of the best reward: alike because solved


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DegenerateText(Rule):
    """Repetitive share > max(.2, baseline + .15), or distinct share < max(.1, 1.1 / G) below the best reward."""

    type: ClassVar[str] = "degenerate_text"
    rule_id: ClassVar[str] = "degenerate_text"
    watches: ClassVar[tuple[str, ...]] = (LOOPS, SAME)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({SAME})
    confirmation: ClassVar[Confirmation] = Confirmation(k=5, n=8, clear=8)

    def flag(self, view: View) -> bool | None:
        alike = below(view.now(SAME), _few(view))
        worse = below(None if view.reward.best is None else share(view, view.reward.best), AT_BEST)
        return any_of(above(view.now(LOOPS), _limit(view)), bool(alike and worse) if alike is not None else None)

    def clear(self, view: View) -> bool | None:
        return all_of(below(view.now(LOOPS), _limit(view) / 2), above(view.now(SAME), _few(view)))

    def evidence(self, view: View) -> str:
        return LOOPS if above(view.now(LOOPS), _limit(view)) or view.now(SAME) is None else SAME


def _limit(view: View) -> float:
    return max(LIMIT, (view.baseline(LOOPS) or 0.0) + GROWTH)


def _few(view: View) -> float:
    return FEW if view.siblings is None else max(FEW, ALL_ALIKE / view.siblings)
