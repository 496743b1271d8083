"""Whether an attempt recovered: one rule over evaluations and events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.core.collapse import COLLAPSE, DECLARED, settled
from harness.core.recovery import EpisodeSpec, Verdict
from harness.core.results import EventRecord

STREAK = 3  # consecutive evaluations at the level of before
LOST_SHARE, LOST_EVALS = 0.5, 2  # a held-out score below half of its best, twice in a row, is a collapse by itself
PARTIAL = 0.5  # of the way from the base to the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on one attempt."""

    verdict: Verdict
    why: str
    at: int | None = None  # step of the first of the evaluations that made it recovered
    score: float | None = None  # mean of the last three evaluations


def judge(
    episode: EpisodeSpec, evals: Sequence[tuple[int, float]], events: Sequence[EventRecord], last_step: int
) -> Judgement:
    """METHOD's rule for one attempt: its validation scores by step, its events, the step at which it ended.

    recovered: (i) score >= best - tolerance at three consecutive evaluations past the old onset, (ii) no collapse is
    active at the end, (iii) it lasted `survive` steps past the old onset. recurred: the same kind of collapse again.
    partial: score >= base + (best - base) / 2 over the last three evaluations. Otherwise not recovered. A collapse is
    an event of severity FATAL or COLLAPSE, or a held-out score below half of the attempt's best twice in a row.
    """
    level = episode.best - episode.tolerance
    past = [(step, score) for step, score in evals if step >= episode.onset]
    at = next((past[i][0] for i in range(len(past) - STREAK + 1) if _all_reach(past[i : i + STREAK], level)), None)
    tail = [score for _, score in evals[-STREAK:]]
    score = sum(tail) / len(tail) if tail else None
    collapses = [e for e in settled(events) if e.severity in COLLAPSE]
    active = any(e.clear_step is None for e in collapses) or _lost_at_end(evals)
    lasted = last_step >= episode.onset + episode.survive
    if at is not None and not active and lasted:
        return Judgement(verdict="recovered", why=f"{level:.3f} or more from step {at} on", at=at, score=score)
    again = [e for e in collapses if episode.type in (DECLARED, e.type)]
    if again:
        return Judgement(verdict="recurred", why=f"{again[0].type} again at step {again[0].onset_step}", score=score)
    if episode.type == DECLARED and _lost_anywhere(evals):
        return Judgement(verdict="recurred", why="the held-out score fell below half of its best again", score=score)
    missing = _missing(at=at, active=active, lasted=lasted, level=level)
    if score is not None and score >= episode.base + PARTIAL * (episode.best - episode.base):
        return Judgement(verdict="partial", why=f"ends at {score:.3f}; {missing}", score=score)
    return Judgement(verdict="not recovered", why=missing, score=score)


def _all_reach(evals: Sequence[tuple[int, float]], level: float) -> bool:
    return all(score >= level for _, score in evals)


def _lost(evals: Sequence[tuple[int, float]]) -> list[bool]:
    """At each evaluation, whether the score is below half of the best one before it."""
    best, found = 0.0, []
    for _, score in evals:
        found.append(score < LOST_SHARE * best)
        best = max(best, score)
    return found


def _lost_at_end(evals: Sequence[tuple[int, float]]) -> bool:
    found = _lost(evals)[-LOST_EVALS:]
    return len(found) == LOST_EVALS and all(found)


def _lost_anywhere(evals: Sequence[tuple[int, float]]) -> bool:
    return any(a and b for a, b in pairwise(_lost(evals)))


def _missing(*, at: int | None, active: bool, lasted: bool, level: float) -> str:
    if at is None:
        return f"never {STREAK} evaluations in a row at {level:.3f} or more past the old onset"
    return "a collapse is active at the end" if active else "it ended too soon after the old onset to tell"
