"""The engine that samples and the engine that trains disagree: a precursor of collapse in asynchronous training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

K3, SIZE, ALIKE = "mismatch/k3", "mismatch/abs_dlogp_mean", "mismatch/pearson_p"
K3_LIMIT, SIZE_LIMIT, ALIKE_LIMIT = 0.05, 0.1, 0.1  # nats; nats; 1 - correlation
FAR = 10.0  # a limit lies at least this far above the baseline
SLIGHT = 0.01  # nats: below it a correlation of saturated probabilities is rounding


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchBlowup(Rule):
    """k3 > .05, or mean |e| > .1, or corr(p) < .9; each limit at least ten times its baseline."""

    type: ClassVar[str] = "mismatch_blowup"
    rule_id: ClassVar[str] = "mismatch_blowup"
    watches: ClassVar[tuple[str, ...]] = (K3, SIZE, ALIKE)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({ALIKE})
    confirmation: ClassVar[Confirmation] = Confirmation(k=4, n=8, clear=8)

    def flag(self, view: View) -> bool | None:
        return any_of(*(above(value, limit) for value, limit in _compared(view)))

    def clear(self, view: View) -> bool | None:
        return all_of(*(below(value, limit / 2) for value, limit in _compared(view)))


def _compared(view: View) -> list[tuple[float | None, float]]:
    size, alike = view.now(SIZE), view.now(ALIKE)
    unlike = None if alike is None or (size is not None and size < SLIGHT) else 1 - alike
    base = view.baseline(ALIKE)
    return [
        (view.now(K3), max(K3_LIMIT, FAR * (view.baseline(K3) or 0.0))),
        (size, max(SIZE_LIMIT, FAR * (view.baseline(SIZE) or 0.0))),
        (unlike, max(ALIKE_LIMIT, 0.0 if base is None else FAR * (1 - base))),
    ]
