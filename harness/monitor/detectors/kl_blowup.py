"""The policy leaves the reference policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

KEY = "kl_ref/k3"
LIMIT = 0.5  # nats per token
TIMES, LEAST = 10.0, 0.1  # x trailing median, and above this
CLEAR = 0.6  # of either limit: .3 of .5
FAR = 10.0  # the limit lies at least this far above the baseline


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KlBlowup(Rule):
    """k3 > max(.5, 10 baseline) nats per token, or > .1 and ten times its trailing median."""

    type: ClassVar[str] = "kl_blowup"
    rule_id: ClassVar[str] = "kl_blowup"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    confirmation: ClassVar[Confirmation] = Confirmation(k=5, n=8, clear=10)

    def flag(self, view: View) -> bool | None:
        return any_of(*(above(view.now(KEY), limit) for limit in _limits(view)))

    def clear(self, view: View) -> bool | None:
        return all_of(*(below(view.now(KEY), CLEAR * limit) for limit in _limits(view)))


def _limits(view: View) -> list[float]:
    trailing = view.trailing(KEY)
    grown = [] if trailing is None else [max(TIMES * trailing, LEAST)]
    return [max(LIMIT, FAR * (view.baseline(KEY) or 0.0)), *grown]
