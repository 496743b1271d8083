"""The policy has all but stopped exploring. Normal late in a run, so by itself never a collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.core.results import Severity
from harness.monitor.detectors.dead_signal import RIGHT, SOLVED
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

SHARE = 0.1  # of the baseline
CERTAIN = 0.05  # nats
CLEAR = 0.2
MOST = 0.5  # of the groups


def entropy(view: View) -> tuple[str, float | None]:
    """Exact entropy in nats per token, or else the sampled estimate."""
    key = "entropy/exact" if view.now("entropy/exact") is not None else "entropy/sampled"
    return key, view.now(key)


def solved(view: View) -> bool:
    """Whether most groups have only correct responses: certainty is then what was asked for."""
    return bool(above(view.now(RIGHT), MOST))


def times(factor: float, value: float | None) -> float | None:
    """factor x value, None where that is unknown."""
    return None if value is None else factor * value


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyCollapse(Rule):
    """H < 10 % of its baseline, or < .05 nats and < 20 %; `solved`, and no more than a warning, where groups are right.

    The absolute limit alone would flag healthy runs that start with hardly any entropy, as a fine-tuned model does.
    """

    type: ClassVar[str] = "entropy_collapse"
    rule_id: ClassVar[str] = "entropy_collapse"
    rule_version: ClassVar[int] = 2
    watches: ClassVar[tuple[str, ...]] = ("entropy/exact", "entropy/sampled", RIGHT)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({"entropy/exact", "entropy/sampled"})
    confirmation: ClassVar[Confirmation] = Confirmation(k=8, n=10, clear=10)

    def flag(self, view: View) -> bool | None:
        key, now = entropy(view)
        base = view.baseline(key)
        certain = all_of(below(now, CERTAIN), below(now, times(CLEAR, base)))
        return any_of(below(now, times(SHARE, base)), certain)

    def detail(self, view: View) -> str | None:
        return SOLVED if solved(view) else None

    def severity_of(self, view: View) -> Severity:
        return "WARN" if solved(view) else self.severity

    def clear(self, view: View) -> bool | None:
        key, now = entropy(view)
        return above(now, times(CLEAR, view.baseline(key)))
