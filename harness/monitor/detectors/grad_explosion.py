"""Gradients grow by multiples and stay there; a single spike is benign and only a warning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, below

KEY = "grad/norm_pre"
TIMES, CLEAR, SPIKE = 5.0, 2.0, 10.0  # x trailing median
OF_BASELINE = 10.0


def _times(factor: float, view: View, of_baseline: float | None = None) -> float | None:
    """factor x trailing median, or of_baseline x baseline if that is less; a norm of 0 is the scale of nothing."""
    limits = [factor * trailing] if (trailing := view.trailing(KEY)) else []
    limits += [of_baseline * base] if of_baseline and (base := view.baseline(KEY)) else []
    return min(limits, default=None)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradExplosion(Rule):
    """Norm before clipping > 5 x its trailing median, or 10 x its baseline. What is not finite is `numeric`.

    The second condition is for drifts so slow that the trailing median goes along. 5 of 8 and not 4, and 4 in short
    runs too: a benign burst of three spikes beside a fourth is no explosion, and does not shrink with the run.
    """

    type: ClassVar[str] = "grad_explosion"
    rule_id: ClassVar[str] = "grad_explosion"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    confirmation: ClassVar[Confirmation] = Confirmation(k=5, n=8, clear=8, least=4)

    def flag(self, view: View) -> bool | None:
        return above(view.now(KEY), _times(TIMES, view, OF_BASELINE))

    def clear(self, view: View) -> bool | None:
        return below(view.now(KEY), _times(CLEAR, view, OF_BASELINE * CLEAR / TIMES))

    def reference(self, view: View, key: str) -> float | None:
        return view.trailing(key)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradSpike(Rule):
    """Norm before clipping > 10 x its trailing median, once; spikes within 8 steps are one event."""

    type: ClassVar[str] = "grad_spike"
    rule_id: ClassVar[str] = "grad_spike"
    watches: ClassVar[tuple[str, ...]] = (KEY,)
    confirmation: ClassVar[Confirmation] = Confirmation(k=1, n=1, clear=8)
    severity: ClassVar[Severity] = "WARN"

    def flag(self, view: View) -> bool | None:
        return above(view.now(KEY), _times(SPIKE, view))

    def clear(self, view: View) -> bool | None:
        return below(view.now(KEY), _times(TIMES, view))

    def reference(self, view: View, key: str) -> float | None:
        return view.trailing(key)
