"""A mixture of experts stops using its experts. Source: RSPO (2510.23027), R3 (2510.11370)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

DEAD, SPREAD, LOAD = "moe/dead_experts", "moe/route_entropy", "moe/max_vio"
DEAD_LIMIT, SPREAD_LIMIT, LOAD_LIMIT = 0.25, 0.5, 5.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCollapse(Rule):
    """Dead experts > 25 %, or route entropy < .5 of uniform, or load > 5 x above balance."""

    type: ClassVar[str] = "expert_collapse"
    rule_id: ClassVar[str] = "expert_collapse"
    watches: ClassVar[tuple[str, ...]] = (DEAD, SPREAD, LOAD)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({SPREAD})
    confirmation: ClassVar[Confirmation] = Confirmation(k=8, n=10, clear=10)

    def flag(self, view: View) -> bool | None:
        return any_of(
            above(view.now(DEAD), DEAD_LIMIT), below(view.now(SPREAD), SPREAD_LIMIT), above(view.now(LOAD), LOAD_LIMIT)
        )

    def clear(self, view: View) -> bool | None:
        return all_of(
            below(view.now(DEAD), DEAD_LIMIT / 2),
            above(view.now(SPREAD), (1 + SPREAD_LIMIT) / 2),
            below(view.now(LOAD), LOAD_LIMIT / 2),
        )
