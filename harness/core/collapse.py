"""The collapse of a run, as recovery and retention see it: the one place that reads it out of events.jsonl."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.core.results import EvalRecord, EventRecord

COLLAPSE = ("FATAL", "COLLAPSE")  # severities that count as collapse; a precursor or a pathology does not
DECLARED = "declared"  # type of an episode whose onset somebody named, without a detector


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The first collapse of a run."""

    type: str  # of the event, or `declared`
    onset: int  # first step at which something was wrong
    confirm: int  # step at which that was certain
    last_healthy: int | None = None  # step of the checkpoint that the detector named, where it did


def settled(events: Iterable[EventRecord]) -> list[EventRecord]:
    """One record per event: a later record of the same type, rule and onset (its clearing) replaces the earlier."""
    return [*{(e.type, e.rule_id, e.onset_step): e for e in events}.values()]


def first_collapse(events: Iterable[EventRecord]) -> Episode | None:
    """The first confirmed event of severity FATAL or COLLAPSE; METHOD's trigger of the recovery protocol."""
    found = sorted((e for e in events if e.severity in COLLAPSE), key=lambda e: (e.confirm_step, e.onset_step))
    if not found:
        return None
    first = found[0]
    named = (first.checkpoint_last_healthy or "").rstrip("/").rsplit("/", 1)[-1]
    return Episode(
        type=first.type,
        onset=first.onset_step,
        confirm=first.confirm_step,
        last_healthy=int(named) if named.isdigit() else None,
    )


def declared(onset: int, confirm: int | None = None) -> Episode:
    """An episode named by hand."""
    return Episode(type=DECLARED, onset=onset, confirm=onset if confirm is None else confirm)


def best_step(evals: Iterable[EvalRecord], before: int | None = None) -> int | None:
    """Step of the (first) best score on validation, up to and including step `before`; None without any."""
    scores = [(e.score, -e.step) for e in evals if e.split == "validation" and (before is None or e.step <= before)]
    return -max(scores)[1] if scores else None
