"""What finished runs say about the configuration they share: score, collapse, length, cost. Read from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.collapse import first_collapse
from harness.core.results import RESULT, STEPS, RunFolder, read_lines, read_run
from harness.core.scores import last_eval, score_of
from harness.stats.estimate import finite

KL = "kl_ref/k3"
DEGRADED = ("FATAL", "COLLAPSE", "DEGRADED")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One finished run."""

    run_id: str
    seed: int
    test: float | None  # score on the test split at the end of the budget
    validation: float | None  # last evaluation on the validation split; 0 where a collapsed run has none
    collapsed: bool
    event: str | None  # type of the first collapse
    onset: int | None
    length: float | None  # response tokens at the last evaluation
    sampled_tokens: int
    seconds: float
    memory_gib: float | None
    kl: float | None  # k3 to the reference policy at the last step that has it, nats/token
    drawdown: float  # (best validation score - last) / best, 0 where nothing was reached
    degraded: float  # share of the run's steps from the first event of severity DEGRADED or worse to its clearing


def run_facts(folder: Path) -> RunFacts | None:
    """The facts of a finished run; None where it has not ended or failed for reasons outside the algorithm."""
    if not (folder / RESULT).exists():
        return None
    run = read_run(folder)
    if run.result is None or run.result.status == "infra_failed":
        return None
    collapse = first_collapse(run.events)
    collapsed = run.result.status == "collapsed"
    last = last_eval(run.evals, "validation")
    known = last is not None and last.step > 0
    validation = last.score if last is not None and known else 0.0 if collapsed else None
    memory = run.result.peak_memory_mib
    return RunFacts(
        run_id=run.run_id,
        seed=run.spec.seed,
        test=score_of(run).value,
        validation=validation,
        collapsed=collapsed,
        event=collapse.type if collapse else None,
        onset=collapse.onset if collapse else None,
        length=last.length_mean if last is not None else None,
        sampled_tokens=run.result.sampled_tokens,
        seconds=run.result.wallclock_s,
        memory_gib=None if memory is None else memory / 1024,
        kl=next((row[KL] for row in reversed(run.steps) if row.get(KL) is not None), None),
        drawdown=_drawdown(run),
        degraded=_degraded(run),
    )


def _drawdown(run: RunFolder) -> float:
    scores = [e.score for e in sorted(run.evals, key=lambda e: e.step) if e.split == "validation"]
    best = max(scores, default=0.0)
    return (best - scores[-1]) / best if best > 0 else 0.0


def _degraded(run: RunFolder) -> float:
    steps = run.result.steps if run.result else 0
    bad: set[int] = set()
    for event in run.events:
        if event.severity in DEGRADED:
            bad.update(range(event.onset_step, (event.clear_step or steps + 1)))
    return len(bad) / steps if steps else 0.0


def instability(facts: RunFacts) -> float:
    """collapsed (0 or 1) + drawdown + share of degraded steps: each in [0, 1], less is better."""
    return float(facts.collapsed) + facts.drawdown + facts.degraded


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    kept = finite(values)
    return float(np.mean(kept)) if len(kept) else None


def cost_so_far(folders: Sequence[Path]) -> dict[str, float]:
    """Tokens and seconds that unfinished runs have spent, by the last row of their step logs."""
    rows = [rows[-1] for folder in folders if (rows := list(read_lines(folder / STEPS)))]
    return {
        "sampled_tokens": sum(int(r["sampled_tokens_cum"]) for r in rows),
        "seconds": sum(float(r["wallclock_s"]) for r in rows),
    }


def attributes(facts: Sequence[RunFacts]) -> dict[str, Any]:
    """What a trial keeps of its runs."""
    return {
        "runs": [f.run_id for f in facts],
        "seeds": [f.seed for f in facts],
        "test": [f.test for f in facts],
        "validation": [f.validation for f in facts],
        "collapsed": sum(f.collapsed for f in facts),
        "outcome": "collapsed" if any(f.collapsed for f in facts) else "completed",
        "event_type": next((f.event for f in facts if f.event), None),
        "onset_step": next((f.onset for f in facts if f.onset is not None), None),
        "length": mean_of([f.length for f in facts]),
        "sampled_tokens": sum(f.sampled_tokens for f in facts),
        "seconds": sum(f.seconds for f in facts),
        "memory_gib": max((f.memory_gib for f in facts if f.memory_gib is not None), default=None),
        "kl": max((f.kl for f in facts if f.kl is not None), default=None),
        "instability": mean_of([instability(f) for f in facts]),
        "drawdown": mean_of([f.drawdown for f in facts]),
        "degraded": mean_of([f.degraded for f in facts]),
    }
