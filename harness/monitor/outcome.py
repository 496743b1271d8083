"""How a run ended, and whether it goes on: four outcomes that are never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from harness.core.results import COLLAPSED, EventRecord, RunStatus

Policy = Literal["record", "stop", "stop_on_fatal"]
FEWEST = 10  # rollout steps; whether a shorter run learned cannot be told


def outcome(events: Sequence[EventRecord], *, steps: int, learned: bool | None, error: str | None = None) -> RunStatus:
    """infra_failed, else collapsed, else no_learning, else completed, in this order.

    collapsed: any FATAL or COLLAPSE event, whether it cleared or not (`below_base` among them, so that a run that
    declines from its first steps is a collapse). no_learning: the task reward never rose 3 standard errors above its
    base, nor any held-out score above the step-0 score; `learned=None` where nothing was measured.
    """
    if error is not None:
        return "infra_failed"
    if any(e.severity in COLLAPSED for e in events):
        return "collapsed"
    return "no_learning" if learned is False and steps >= FEWEST else "completed"


def ends_the_run(events: Sequence[EventRecord], policy: Policy) -> bool:
    """Whether a run stops: at a FATAL event, under `stop` at any collapse, under `record` never."""
    severities = {e.severity for e in events}
    fatal = "FATAL" in severities
    return {"record": False, "stop_on_fatal": fatal, "stop": fatal or "COLLAPSE" in severities}[policy]
