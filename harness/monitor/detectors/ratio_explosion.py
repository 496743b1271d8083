"""Importance ratios leave any trust region. Source: verl's rollout_corr health check; VCPO (2602.17616)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Confirmation
from harness.monitor.view import View, above, all_of, any_of, below

ESS, TAIL, MEAN = "ratio/ess_tok", "ratio/tok_q999", "ratio/tok_mean"
ESS_LIMIT, ESS_CLEAR = 0.3, 0.5
TAIL_LIMIT = 10.0
MEAN_LIMIT = 0.1
FAR = 3.0  # a baseline that is nearer to a limit than this factor moves the limit


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RatioExplosion(Rule):
    """ESS / N < .3, or q999(r) > 10, or |mean r - 1| > .1; limits give way to a baseline that is close to them."""

    type: ClassVar[str] = "ratio_explosion"
    rule_id: ClassVar[str] = "ratio_explosion"
    watches: ClassVar[tuple[str, ...]] = (ESS, TAIL, MEAN)
    worst_is_low: ClassVar[frozenset[str]] = frozenset({ESS})
    confirmation: ClassVar[Confirmation] = Confirmation(k=4, n=8, clear=8)

    def flag(self, view: View) -> bool | None:
        ess, tail, mean = self._limits(view)
        far = None if (m := view.now(MEAN)) is None else abs(m - 1) > mean
        return any_of(below(view.now(ESS), ess), above(view.now(TAIL), tail), far)

    def clear(self, view: View) -> bool | None:
        ess, tail, mean = self._limits(view)
        near = None if (m := view.now(MEAN)) is None else abs(m - 1) < mean
        return all_of(above(view.now(ESS), ESS_CLEAR / ESS_LIMIT * ess), below(view.now(TAIL), tail), near)

    def evidence(self, view: View) -> str:
        ess, tail, _ = self._limits(view)
        if below(view.now(ESS), ess):
            return ESS
        return TAIL if above(view.now(TAIL), tail) else MEAN if view.now(MEAN) is not None else ESS

    def _limits(self, view: View) -> tuple[float, float, float]:
        ess, tail, mean = (view.baseline(key) for key in (ESS, TAIL, MEAN))
        return (
            min(ESS_LIMIT, (1.0 if ess is None else ess) / 2),
            max(TAIL_LIMIT, FAR * (tail or 0.0)),
            max(MEAN_LIMIT, FAR * abs((1.0 if mean is None else mean) - 1)),
        )
