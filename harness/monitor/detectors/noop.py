"""Optimizer steps are taken and the weights stay where they are: a mistake of the set-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, all_of, below

MOVED, DRIFT = "update/rel", "kl_old/k3"
RATE, TAKEN = "lr", "budget/optimizer_steps"
LEAST = 1e-9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Noop(Rule):
    """Relative update < 1e-9 (where it was not measured: kl_old = 0) with a learning rate and optimizer steps."""

    type: ClassVar[str] = "noop"
    rule_id: ClassVar[str] = "noop"
    watches: ClassVar[tuple[str, ...]] = (MOVED, DRIFT, RATE, TAKEN)
    confirmation: ClassVar[Confirmation] = Confirmation(k=5, n=5, clear=5)
    severity: ClassVar[Severity] = "WARN"

    def flag(self, view: View) -> bool | None:
        if view.now(RATE) == 0 or view.now(TAKEN) == 0:
            return None
        moved, drift = view.now(MOVED), view.now(DRIFT)
        return below(moved, LEAST) if moved is not None else None if drift is None else drift == 0

    def clear(self, view: View) -> bool | None:
        flag = self.flag(view)
        return all_of(None if flag is None else not flag)
