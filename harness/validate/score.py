"""What the detectors made of curves whose truth is known: recall, precision, delays, false alarms, all with bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.core.results import COLLAPSED, EventRecord
from harness.monitor.replay import replay
from harness.monitor.scores import Evaluation
from harness.monitor.watch import Monitor, update
from harness.stats.estimate import jeffreys, poisson_rate
from harness.validate.curves import Curve
from harness.validate.targets import TYPES, WARNINGS

PER = 1000  # healthy steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One curve and what was found in it."""

    name: str
    kind: str | None  # the fault's type
    shape: str | None
    steps: int
    healthy_steps: int  # before the onset; all of them where there is no fault
    met: int | None  # first step at which the noise-free curve meets the flag condition; None: never
    onset: int | None  # the truth
    found: int | None  # onset of the first event of the right type
    confirm: int | None
    early: int  # alarms confirmed before the onset: false ones
    others: tuple[str, ...]  # alarms of other types after the onset
    warnings: int
    collapses: int  # events of severity COLLAPSE or FATAL
    solved: bool


def judge(curve: Curve) -> Judged:
    """Replays a curve, and its noise-free course for the step from which a delay counts."""
    keys = [key for key in curve.logged if key.startswith("eval/")]

    def with_scores(row: dict[str, Any]) -> tuple[dict[str, Any], list[Evaluation]]:
        known = {key: row.pop(key) for key in keys}
        return row, [Evaluation(step=row["step"], split=k, score=v) for k, v in known.items() if v is not None]

    events = replay(map(with_scores, curve.rows(curve.logged)), Monitor(horizon=curve.horizon)).events
    fault = curve.fault
    begin = curve.length + 1 if fault is None else fault.onset
    alarms = [e for e in events if e.type not in WARNINGS and e.severity != "WARN"]
    wanted = [e for e in events if fault is not None and e.type == fault.type and e.confirm_step >= begin]
    first = min(wanted, key=lambda e: e.confirm_step, default=None)
    late = [e for e in alarms if e.confirm_step >= begin]
    return Judged(
        name=curve.name,
        kind=None if fault is None else fault.type,
        shape=None if fault is None else fault.shape.split()[0],
        steps=curve.length,
        healthy_steps=min(curve.length, begin - 1),
        met=None if fault is None else _met(curve, fault.type, fault.onset),
        onset=None if fault is None else fault.onset,
        found=None if first is None else first.onset_step,
        confirm=None if first is None else first.confirm_step,
        early=sum(e.confirm_step < begin for e in alarms),
        others=tuple(e.type for e in late if fault is None or e.type != fault.type),
        warnings=sum(e.severity == "WARN" for e in events),
        collapses=sum(e.severity in COLLAPSED for e in events),
        solved=curve.solved,
    )


def _met(curve: Curve, kind: str, onset: int) -> int | None:
    """The first flagged step of the event that the noise-free curve leads to."""
    state = Monitor(horizon=curve.horizon)
    for row in curve.rows(curve.clean):
        state = update(state, row).state
        hit: EventRecord | None = next((e for e in state.events if e.type == kind and e.confirm_step >= onset), None)
        if hit is not None:
            return max(onset, hit.flagged_step or onset)
    return None


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Everything that is printed; a fault counts in recall and delay where its noise-free curve meets the condition."""
    faulty = [j for j in judged if j.kind is not None]
    ordinary = [j for j in judged if not j.solved]
    healthy = [j for j in ordinary if j.kind is None]
    return {
        "curves": len(judged),
        "healthy": _alarms(healthy),
        "healthy_with_pre_onset": _alarms(ordinary),
        "solved": _solved([j for j in judged if j.solved]),
        "types": {kind: _type([j for j in faulty if j.kind == kind]) for kind in TYPES if _has(faulty, kind)},
        "alarm_types": _type([j for j in faulty if j.kind not in WARNINGS]),
        "shapes": {
            shape: _type([j for j in faulty if j.shape == shape and j.kind not in WARNINGS])
            for shape in sorted({j.shape or "" for j in faulty})
        },
        "confusion": _confusion(faulty),
    }


def _has(judged: Iterable[Judged], kind: str) -> bool:
    return any(j.kind == kind for j in judged)


def _alarms(judged: Sequence[Judged]) -> dict[str, Any]:
    steps = sum(j.healthy_steps for j in judged)
    found = sum(j.early for j in judged)
    low, high = poisson_rate(found, max(1, steps))
    return {
        "runs": len(judged),
        "steps": steps,
        "false_alarms": found,
        "per_1000": PER * found / max(1, steps),
        "low": PER * low,
        "high": PER * high,
        "runs_with_alarm": sum(j.early > 0 for j in judged),
        "warnings_per_1000": PER * sum(j.warnings for j in judged) / max(1, steps),
        "which": sorted(j.name for j in judged if j.early),
    }


def _solved(judged: Sequence[Judged]) -> dict[str, Any]:
    return {
        "runs": len(judged),
        "called_collapse": sum(j.collapses > 0 for j in judged),
        "with_degraded": sum(j.early > 0 for j in judged),
    }


def _type(judged: Sequence[Judged]) -> dict[str, Any]:
    reach = [j for j in judged if j.met is not None]
    caught = [j for j in reach if j.confirm is not None]
    recall = jeffreys(len(caught), len(reach)) if reach else None
    alarms = sum(j.confirm is not None for j in judged)
    wrong = sum(len(j.others) + j.early for j in judged)
    precision = jeffreys(alarms, alarms + wrong) if alarms + wrong else None
    delay = [j.confirm - j.met for j in caught if j.confirm is not None and j.met is not None]
    ramp = [j.confirm - j.onset for j in caught if j.confirm is not None and j.onset is not None]
    error = [j.found - j.onset for j in caught if j.found is not None and j.onset is not None]
    return {
        "faults": len(judged),
        "out_of_reach": len(judged) - len(reach),
        "caught": len(caught),
        "recall": None if recall is None else recall.value,
        "recall_low": None if recall is None else recall.low,
        "precision": None if precision is None else precision.value,
        "precision_low": None if precision is None else precision.low,
        "early": sum(j.early for j in judged),
        "delay": _quantiles(delay),
        "delay_from_onset": _quantiles(ramp),
        "onset_error": _quantiles(error),
        "missed": sorted(j.name for j in reach if j.confirm is None),
    }


def _quantiles(values: Sequence[int]) -> dict[str, float | None]:
    shares: dict[str, Callable[[Sequence[int]], float]] = {
        "p10": lambda v: float(np.quantile(v, 0.1)),
        "median": lambda v: float(np.median(v)),
        "p90": lambda v: float(np.quantile(v, 0.9)),
        "max": lambda v: float(max(v)),
    }
    return {name: f(values) if values else None for name, f in shares.items()}


def _confusion(judged: Sequence[Judged]) -> dict[str, dict[str, int]]:
    """Fault -> alarm types after its onset (`none` where there was none) -> number of curves."""
    table: dict[str, dict[str, int]] = {}
    for j in judged:
        row = table.setdefault(j.kind or "", {})
        for name in {*(() if j.confirm is None else (j.kind or "",)), *j.others} or {"none"}:
            row[name] = row.get(name, 0) + 1
    return table


def as_dicts(judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """For the JSON report."""
    return [asdict(j) for j in judged]
