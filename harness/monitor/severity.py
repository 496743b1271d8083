"""How bad an event is: a pathology becomes a collapse once the held-out score is lost with it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.results import EventRecord
from harness.monitor.scores import Scores

LAST_BEFORE = 10  # rollout steps between a healthy checkpoint and an onset


def escalated(events: Sequence[EventRecord], scores: Scores, step: int) -> tuple[EventRecord, ...]:
    """Active events of severity DEGRADED become COLLAPSE while the held-out score is lost (`Scores.lost`).

    FATAL and COLLAPSE stay, WARN is never more. An event that has cleared keeps the severity it had.
    """
    if not scores.lost:
        return tuple(events)
    return tuple(
        e.model_copy(update={"severity": "COLLAPSE", "collapse_step": step})
        if e.severity == "DEGRADED" and e.clear_step is None
        else e
        for e in events
    )


def last_healthy(checkpoints: Sequence[int], onset: int, margin: int = LAST_BEFORE) -> int | None:
    """The newest checkpoint that is at least `margin` steps older than the onset; damage may precede it."""
    return max((step for step in checkpoints if step <= onset - margin), default=None)
