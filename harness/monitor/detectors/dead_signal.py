"""Almost no group of siblings carries a gradient: solved, stuck, or a reward that does not tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, any_of

DEAD = "signal/zero_var_frac"
WRONG, RIGHT = "signal/zero_var_frac_all0", "signal/zero_var_frac_all1"
CAPPED = "signal/refill_exhausted"
ALIVE, SAMPLED, DISCARDED = "signal/effective_groups", "budget/prompts", "signal/oversample_factor"
LIMIT, CLEAR = 0.95, 0.85
SOLVED = "solved"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadSignal(Rule):
    """Groups without spread > 95 % before filtering, or the refill cap hit, or groups without advantage > 95 %.

    `solved` where dead groups are right more often than wrong: a success, so no more than a warning. Else `stuck`.
    """

    type: ClassVar[str] = "dead_signal"
    rule_id: ClassVar[str] = "dead_signal"
    watches: ClassVar[tuple[str, ...]] = (DEAD, WRONG, RIGHT, CAPPED, ALIVE, SAMPLED, DISCARDED)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({ALIVE})
    confirmation: ClassVar[Confirmation] = Confirmation(k=10, n=12, clear=10)

    def flag(self, view: View) -> bool | None:
        return any_of(above(view.now(DEAD), LIMIT), above(view.now(CAPPED), 0.5), above(_without(view), LIMIT))

    def clear(self, view: View) -> bool | None:
        dead = [x for x in (view.now(DEAD), _without(view)) if x is not None]
        return max(dead) < CLEAR and not view.now(CAPPED) if dead else None

    def evidence(self, view: View) -> str:
        if above(view.now(DEAD), LIMIT):
            return DEAD
        return CAPPED if above(view.now(CAPPED), 0.5) else ALIVE if above(_without(view), LIMIT) else DEAD

    def detail(self, view: View) -> str | None:
        wrong, right = view.now(WRONG), view.now(RIGHT)
        if self.evidence(view) == ALIVE:
            return "no advantage"  # rewards differ, but nothing is made of it
        if wrong is None and right is None:
            return None
        return SOLVED if (right or 0.0) > (wrong or 0.0) else "stuck"

    def severity_of(self, view: View) -> Severity:
        return "WARN" if self.detail(view) == SOLVED else self.severity


def _without(view: View) -> float | None:
    """Share of the batch's groups in which every advantage is 0."""
    alive, sampled, factor = view.now(ALIVE), view.now(SAMPLED), view.now(DISCARDED)
    return 1 - alive * (factor or 1.0) / sampled if alive is not None and sampled else None
