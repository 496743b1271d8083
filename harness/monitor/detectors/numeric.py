"""A number that is not one: NaN or an infinity in loss, gradient, logits or reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.series import NONFINITE
from harness.monitor.view import View, above


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric(Rule):
    """Any `health/nonfinite_*` above 0, or such a value itself in `loss/*`, `grad/*` or `reward/mean`. Never clears."""

    type: ClassVar[str] = "numeric"
    rule_id: ClassVar[str] = "numeric"
    watches: ClassVar[tuple[str, ...]] = (NONFINITE,)
    confirmation: ClassVar[Confirmation] = Confirmation(k=1, n=1, clear=None)
    severity: ClassVar[Severity] = "FATAL"

    def flag(self, view: View) -> bool | None:
        return above(view.now(NONFINITE), 0.0)

    def clear(self, view: View) -> bool | None:
        return None

    def reference(self, view: View, key: str) -> float | None:
        return 0.0
