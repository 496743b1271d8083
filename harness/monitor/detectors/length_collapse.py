"""Responses shrink to almost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, below

KEY = "len/mean"
SHARE, CLEAR = 0.25, 0.5  # of the trailing median
WINDOW, GAP = 80, 20


def _share(part: float, view: View) -> float | None:
    trailing = view.trailing(KEY, WINDOW, GAP)
    return None if trailing is None else part * trailing


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCollapse(Rule):
    """Mean length < 25 % of its trailing median (80 steps, gap 20)."""

    type: ClassVar[str] = "length_collapse"
    rule_id: ClassVar[str] = "length_collapse"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=6, n=8, clear=8)

    def flag(self, view: View) -> bool | None:
        return below(view.now(KEY), _share(SHARE, view))

    def clear(self, view: View) -> bool | None:
        return above(view.now(KEY), _share(CLEAR, view))

    def reference(self, view: View, key: str) -> float | None:
        return view.trailing(key, WINDOW, GAP)
