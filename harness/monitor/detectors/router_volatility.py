"""Routes flip from update to update. Reference: about 10 % of the experts change per update in a deep model (GSPO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, below

KEY = "moe/expert_change"
TIMES, LIMIT, FAR, CLEAR = 3.0, 0.3, 10.0, 0.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RouterVolatility(Rule):
    """Changed experts per update > 3 x baseline, or > .3 where the baseline lies ten times below that."""

    type: ClassVar[str] = "router_volatility"
    rule_id: ClassVar[str] = "router_volatility"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    confirmation: ClassVar[Confirmation] = Confirmation(k=5, n=8, clear=8)
    severity: ClassVar[Severity] = "WARN"

    def flag(self, view: View) -> bool | None:
        return above(view.now(KEY), _limit(view))

    def clear(self, view: View) -> bool | None:
        limit = _limit(view)
        return below(view.now(KEY), None if limit is None else CLEAR * limit)


def _limit(view: View) -> float | None:
    base = view.baseline(KEY)
    if base is None:
        return None
    return min(TIMES * base, LIMIT) if FAR * base <= LIMIT else TIMES * base
