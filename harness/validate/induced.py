"""What the detectors make of runs that were broken on purpose, against a label that knows nothing of them.

The run folders are replayed with the rules as they are now, so a changed rule needs no new training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.core.registry import build_task
from harness.core.resolve import resolve
from harness.core.results import COLLAPSED, EvalRecord, EventRecord, RunFolder, StudyFolder
from harness.monitor.outcome import outcome
from harness.monitor.replay import replay_run
from harness.monitor.watch import Monitor, learned
from harness.stats.estimate import jeffreys, poisson_rate
from harness.validate.faults import AT, Induced

LAST = 3  # evaluations
LOST = 0.5  # of the best held-out score
RISE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One run."""

    fault: str
    arm: str
    seed: int
    lost: bool  # the label: held-out score under half of its best in the last three evaluations
    status: str
    base: float
    before: float  # best held-out score before the fault
    final: float
    risen: bool  # by .2 before the fault
    step: int | None  # first step with the fault
    verdict: str  # right, neighbour, missed; clean or false alarm where there was no fault
    first: str | None  # type of the event that counted
    delay: int | None  # its confirmation after the fault's first step
    events: tuple[str, ...]  # type (severity, onset, confirmation), in order
    before_fault: tuple[str, ...]  # alarms confirmed before the fault: false ones
    collapses: int  # events that count as a collapse
    healthy_steps: int
    as_written: bool  # the replay gives the events that the run itself wrote


def label(evals: Sequence[EvalRecord]) -> bool:
    """Held-out score under 50 % of its best in the last 3 evaluations, step 0 counting as a best."""
    scores = [e.score for e in sorted(evals, key=lambda e: (e.step, e.split == "test"))]
    return len(scores) > LAST and all(s < LOST * max(scores) for s in scores[-LAST:])


def verdicts(study: StudyFolder, fault: Induced) -> list[Verdict]:
    """Every finished run of a study."""
    return [_verdict(run, fault) for run in study.runs if run.result is not None]


def _verdict(run: RunFolder, fault: Induced) -> Verdict:
    state = replayed(run)
    steps = len(run.steps)
    broken = bool(fault.overrides)
    begin = round(AT * (run.spec.budget.steps or steps)) + 1 if broken else steps + 1
    alarms = [e for e in state.events if e.severity != "WARN"]
    late = sorted((e for e in alarms if e.confirm_step >= begin), key=lambda e: e.confirm_step)
    right = next((e for e in late if e.type in fault.right), None)
    neighbour = next((e for e in late if e.type in fault.neighbours), None)
    counted = right or neighbour
    early = [e for e in alarms if e.confirm_step < begin]
    validation = [e for e in run.evals if e.split == "validation"]
    base = next(e.score for e in validation if e.step == 0)
    before = max(e.score for e in validation if e.step < begin)
    if broken:
        verdict = "right" if right else "neighbour" if neighbour else "missed"
    else:
        verdict = "false alarm" if early else "clean"
    return Verdict(
        fault=fault.name,
        arm=run.spec.arm,
        seed=run.spec.seed,
        lost=label(run.evals),
        status=outcome(state.events, steps=steps, learned=learned(state)),
        base=base,
        before=before,
        final=_final(run),
        risen=before - base >= RISE,
        step=begin if broken else None,
        verdict=verdict,
        first=counted.type if counted else None,
        delay=counted.confirm_step - begin if counted else None,
        events=tuple(f"{e.type} ({e.severity}, {e.onset_step}, {e.confirm_step})" for e in state.events),
        before_fault=tuple(e.type for e in early),
        collapses=sum(e.severity in COLLAPSED for e in state.events),
        healthy_steps=min(steps, begin - 1),
        as_written=[_told(e) for e in state.events] == [_told(e) for e in run.events],
    )


def replayed(run: RunFolder) -> Monitor:
    """The detectors over a run folder, knowing what the run itself knew."""
    task = build_task(run.spec.task.name, run.spec.task.params)
    return replay_run(run, Monitor(siblings=resolve(run.spec).siblings, reward_low=task.info.reward_range[0]))


def _told(event: EventRecord) -> dict[str, Any]:
    """An event without the checkpoint, which depends on when the clock asked for one."""
    return event.model_dump(exclude={"checkpoint_last_healthy"})


def _final(run: RunFolder) -> float:
    return max(run.evals, key=lambda e: (e.step, e.split == "test")).score


def summary(found: Sequence[Verdict]) -> dict[str, Any]:
    """Recall by fault, false alarms with bounds, and label against status."""
    broken = [v for v in found if v.step is not None]
    healthy = [v for v in found if v.step is None]
    caught = [v for v in broken if v.verdict != "missed"]
    steps = sum(v.healthy_steps for v in found)
    alarms = sum(len(v.before_fault) for v in found)
    low, high = poisson_rate(alarms, max(1, steps))
    recall = jeffreys(len(caught), len(broken))
    right = jeffreys(sum(v.verdict == "right" for v in broken), len(broken))
    delays = [v.delay for v in caught if v.delay is not None]
    return {
        "faulty_runs": len(broken),
        "healthy_runs": len(healthy),
        "risen_before_the_fault": sum(v.risen for v in broken),
        "recall": recall.as_dict(),
        "right_type": right.as_dict(),
        "delay_median": float(np.median(delays)) if delays else None,
        "delay_p90": float(np.quantile(delays, 0.9)) if delays else None,
        "healthy_steps": steps,
        "false_alarms": alarms,
        "false_alarms_per_1000": {"value": 1000 * alarms / max(1, steps), "low": 1000 * low, "high": 1000 * high},
        "collapse_events_in_healthy_runs": sum(v.collapses for v in healthy),
        "replays_as_written": sum(v.as_written for v in found),
        "label_and_status": _table(found),
        "confusion": _confusion(broken),
        "runs": [asdict(v) for v in found],
    }


def _table(found: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """Label -> status -> runs."""
    table: dict[str, dict[str, int]] = {"score lost": {}, "score kept": {}}
    for v in found:
        row = table["score lost" if v.lost else "score kept"]
        row[v.status] = row.get(v.status, 0) + 1
    return table


def _confusion(broken: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """Fault -> types of its events after it began (`none`) -> runs."""
    table: dict[str, dict[str, int]] = {}
    for v in broken:
        row = table.setdefault(v.fault, {})
        warnings_left_out = [e for e in v.events if "(WARN" not in e]
        for name in {e.partition(" ")[0] for e in warnings_left_out} or {"none"}:
            row[name] = row.get(name, 0) + 1
    return table
