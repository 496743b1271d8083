"""Hand-made curves for the detectors: a healthy run, and what a test changes in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.results import EventRecord
from harness.monitor.scores import Evaluation
from harness.monitor.watch import Monitor, close, update

HEALTHY: dict[str, float] = {
    "reward/mean": 0.4, "entropy/exact": 0.6, "kl_ref/k3": 0.01, "ratio/ess_tok": 0.97, "ratio/tok_q999": 1.5,
    "ratio/tok_mean": 1.0, "grad/norm_pre": 0.7, "len/mean": 100.0, "len/trunc_rate": 0.02, "text/rep_rate": 0.01,
    "text/distinct_in_group": 0.8, "mismatch/k3": 1e-4, "mismatch/abs_dlogp_mean": 2e-3, "mismatch/pearson_p": 0.999,
    "signal/zero_var_frac": 0.3, "value/explained_var": 0.5, "moe/dead_experts": 0.01, "moe/route_entropy": 0.95,
    "moe/max_vio": 0.8, "moe/expert_change": 0.05, "update/rel": 1e-3, "kl_old/k3": 1e-3, "lr": 1e-4,
}  # fmt: skip


def rows(steps: int, changes: Mapping[str, Any] | None = None, begin: int = 1) -> list[dict[str, Any]]:
    """A healthy run whose reward rises from .3 to .7, with `changes` (values or functions of the step) from `begin`."""
    found = []
    for step in range(1, steps + 1):
        wobble = 0.01 * (-1) ** step
        row: dict[str, Any] = {"step": step, **HEALTHY, "reward/mean": 0.3 + 0.4 * min(1.0, step / 60) + wobble}
        if step >= begin:
            row |= {key: value(step) if callable(value) else value for key, value in (changes or {}).items()}
        found.append(row)
    return found


def watched(
    rows: Iterable[Mapping[str, Any]],
    evaluations: Mapping[int, list[Evaluation]] | None = None,
    *,
    horizon: int = 400,
    **facts: Any,
) -> Monitor:
    """The monitor after these rows; `evaluations` by step."""
    at = evaluations or {}
    state = update(Monitor(horizon=horizon, **facts), None, at.get(0, [])).state
    for row in rows:
        state = update(state, row, at.get(row.get("step"), [])).state
    return close(state)


def alarms(state: Monitor) -> list[tuple[str, str, int, int]]:
    """(type, severity, onset, confirmation)."""
    return [(e.type, e.severity, e.onset_step, e.confirm_step) for e in state.events]


def only(state: Monitor) -> EventRecord:
    """The one event there is."""
    [event] = state.events
    return event
