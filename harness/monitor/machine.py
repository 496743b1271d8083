"""The state machine under every rule: OK -> SUSPECT -> CONFIRMED -> cleared, with confirmation and hysteresis.

SUSPECT from the first flagged step; CONFIRMED once k of the last n known steps are flagged; cleared after `clear` known
steps in a row on which the rule's clear condition holds. In runs of T < 150 steps k, n and clear shrink by T / 150
(n >= 3; k >= 2, or a rule's own least, unless k is 1; k <= n). A step on which nothing is known counts neither way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from harness.monitor.series import State
from harness.monitor.view import scaled

STALE = 4  # windows; flags older than that are forgotten, however few steps were measured since


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """k of the last n steps confirm, `clear` steps in a row clear; `clear=None`: it never ends."""

    k: int
    n: int
    clear: int | None
    least: int = 2  # k in the shortest runs, where n allows it
    lasting: bool = False  # flags do not grow old: evaluations lie any number of steps apart

    def for_run(self, scale: float) -> Confirmation:
        """The same for a run of T = 150 scale steps; a rule that confirms at once stays so."""
        if self.k == 1:
            return self
        n = scaled(self.n, scale, min(3, self.n))
        clear = None if self.clear is None else scaled(self.clear, scale, 2)
        return replace(self, k=min(n, scaled(self.k, scale, self.least)), n=n, clear=clear)


class Machine(State):
    """Where one rule stands."""

    phase: Literal["ok", "suspect", "confirmed"] = "ok"
    flagged: tuple[tuple[int, bool], ...] = ()  # the last n known steps: (step, flagged)
    anchor: int | None = None  # first flagged step of this suspicion or event
    clear_run: int = 0  # steps in a row on which the clear condition held
    event: int | None = None  # index of the event while confirmed

    @property
    def onset(self) -> int | None:
        """The first flagged one of the last n known steps."""
        return next((step for step, flag in self.flagged if flag), None)


Change = Literal["suspect", "confirmed", "cleared"]


def watch(machine: Machine, step: int, flag: bool | None, rule: Confirmation) -> tuple[Machine, Change | None]:
    """A machine that is not confirmed, after one step."""
    if flag is None:
        return machine, None
    if not flag and machine.phase == "ok":
        return machine, None
    recent = (*machine.flagged, (step, flag))[-rule.n :]
    recent = recent if rule.lasting else tuple(x for x in recent if x[0] > step - STALE * rule.n)
    count = sum(f for _, f in recent)
    if count == 0:
        return Machine(), None
    anchor = step if machine.anchor is None else machine.anchor
    phase: Literal["suspect", "confirmed"] = "confirmed" if count >= rule.k else "suspect"
    change: Change | None = "confirmed" if phase == "confirmed" else None if machine.phase == "suspect" else "suspect"
    return Machine(phase=phase, flagged=recent, anchor=anchor), change


def hold(machine: Machine, clear: bool | None, rule: Confirmation) -> tuple[Machine, Change | None]:
    """A confirmed machine after one step."""
    if clear is None or rule.clear is None:
        return machine, None
    run = machine.clear_run + 1 if clear else 0
    if run >= rule.clear:
        return Machine(), "cleared"
    return machine.model_copy(update={"clear_run": run}), None
