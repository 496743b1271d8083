"""The policy drifts towards noise. Source: clip-higher runs drifting to 2 nats with a falling score (rllm#116)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.entropy_collapse import entropy
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, below

TIMES, FLOOR = 3.0, 0.3  # x max(baseline, nats)
CLEAR = 2.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyExplosion(Rule):
    """H > 3 max(baseline, .3) nats.

    The absolute limit of log(V) / 2 holds where the baseline lies ten times below it, which for any vocabulary of more
    than six tokens is above the relative limit.
    """

    type: ClassVar[str] = "entropy_explosion"
    rule_id: ClassVar[str] = "entropy_explosion"
    watches: ClassVar[tuple[str, ...]] = ("entropy/exact", "entropy/sampled")
    confirmation: ClassVar[Confirmation] = Confirmation(k=6, n=8, clear=10)

    def flag(self, view: View) -> bool | None:
        key, now = entropy(view)
        base = view.baseline(key)
        return None if base is None else above(now, TIMES * max(base, FLOOR))

    def clear(self, view: View) -> bool | None:
        key, now = entropy(view)
        base = view.baseline(key)
        return None if base is None else below(now, CLEAR * max(base, FLOOR))
