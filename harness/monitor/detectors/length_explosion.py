"""Responses grow without bound. Source: GFPO reports 4k -> 14k tokens within 100 GRPO steps (2508.09726)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

CUT, LENGTH = "len/trunc_rate", "len/mean"
LIMIT, GROWTH = 0.3, 0.15  # share of truncated responses; or this much above the baseline
TIMES, CLEAR_TIMES = 3.0, 2.0  # x trailing median length
WINDOW, GAP = 80, 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LengthExplosion(Rule):
    """Truncated share > max(.3, baseline + .15), or mean length > 3 x its trailing median (80 steps, gap 20)."""

    type: ClassVar[str] = "length_explosion"
    rule_id: ClassVar[str] = "length_explosion"
    watches: ClassVar[tuple[str, ...]] = (LENGTH, CUT)
    confirmation: ClassVar[Confirmation] = Confirmation(k=6, n=8, clear=8)

    def flag(self, view: View) -> bool | None:
        return any_of(above(view.now(CUT), _limit(view)), above(view.now(LENGTH), _times(TIMES, view)))

    def clear(self, view: View) -> bool | None:
        calm = below(view.now(CUT), _limit(view) - LIMIT / 2)
        return all_of(calm, below(view.now(LENGTH), _times(CLEAR_TIMES, view)))

    def evidence(self, view: View) -> str:
        return CUT if above(view.now(CUT), _limit(view)) else LENGTH


def _limit(view: View) -> float:
    return max(LIMIT, (view.baseline(CUT) or 0.0) + GROWTH)


def _times(factor: float, view: View) -> float | None:
    trailing = view.trailing(LENGTH, WINDOW, GAP)
    return None if trailing is None else factor * trailing
