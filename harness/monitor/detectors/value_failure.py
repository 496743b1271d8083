"""PPO's critic predicts worse than a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, below

KEY = "value/explained_var"
CLEAR = 0.1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFailure(Rule):
    """Explained variance < 0 after the first 25 steps."""

    type: ClassVar[str] = "value_failure"
    rule_id: ClassVar[str] = "value_failure"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    worst_is_low: ClassVar[frozenset[str]] = frozenset(watches)
    confirmation: ClassVar[Confirmation] = Confirmation(k=15, n=20, clear=20)
    severity: ClassVar[Severity] = "WARN"

    def flag(self, view: View) -> bool | None:
        return below(view.now(KEY), 0.0) if view.warm() else None

    def clear(self, view: View) -> bool | None:
        return above(view.now(KEY), CLEAR)
