"""The held-out score of a run: one rule for reports, ablations and searches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.core.results import EvalRecord, RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The held-out score of a run at its budget, and where it comes from."""

    value: float | None
    source: str


def score_of(run: RunFolder) -> Score:
    """The final test score; a collapsed run keeps the last evaluation of the collapsed model, or 0 (never its best)."""
    result = run.result
    if result is None or result.status == "infra_failed":
        return Score(value=None, source="no score: the run did not reach its budget")
    if result.final_score is not None:
        return Score(value=result.final_score, source="test split at the end of the budget")
    if result.status == "collapsed":
        last = last_eval(run.evals)
        if last is not None and last.step > 0:
            return Score(value=last.score, source=f"last evaluation before the end ({last.split}, step {last.step})")
        return Score(value=0.0, source="no usable evaluation: score of an always-wrong policy")
    return Score(value=None, source="no final evaluation was recorded")


def last_eval(evals: Iterable[EvalRecord], split: str | None = None) -> EvalRecord | None:
    """The latest evaluation, of one split where it is named."""
    kept = [e for e in evals if split is None or e.split == split]
    return max(kept, key=lambda e: e.step) if kept else None


def final_eval(run: RunFolder) -> EvalRecord | None:
    """The evaluation the final score comes from: the last one on the test split after training began."""
    last = last_eval(run.evals, "test")
    return last if last is not None and last.step > 0 else None
