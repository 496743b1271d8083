"""Held-out evaluation: avg@k over a split the run never trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, nan
from statistics import fmean

from harness.core.ports import Split
from harness.core.results import EvalRecord, QuestionScore
from harness.core.types import Prompt, RolloutGroup, Trajectory

EVAL_STREAM = 7919  # opens the random stream of evaluations, apart from every training stream


def evaluate(
    sample: Callable[[Sequence[Prompt], int, tuple[int, ...]], Sequence[RolloutGroup]],
    prompts: Sequence[Prompt],
    *,
    split: Split,
    task: str,
    num_samples: int,
    step: int,
    sampled_tokens: int,
) -> tuple[EvalRecord, Sequence[RolloutGroup]]:
    """avg@k = mean over questions of (correct / k); the same random numbers for every arm, seed and time."""
    groups = sample(prompts, num_samples, (EVAL_STREAM, ("train", "validation", "test").index(split)))
    rows = [t for g in groups for t in g.trajectories]
    questions = tuple(_question(g.trajectories) for g in groups)
    record = EvalRecord(
        step=step,
        sampled_tokens_cum=sampled_tokens,
        split="test" if split == "test" else "validation",
        task=task,
        samples=num_samples,
        score=fmean(q.correct / q.n for q in questions),
        reward_mean=fmean(finite) if (finite := [s for t in rows if isfinite(s := t.grade.score)]) else 0.0,
        length_mean=fmean(t.num_tokens for t in rows),
        truncated=fmean(t.finish_reason == "length" for t in rows),
        components=_components(rows),
        questions=questions,
    )
    return record, groups


def _components(rows: Sequence[Trajectory]) -> dict[str, float]:
    """Mean of each named part of the reward over the responses that have it."""
    names = sorted({name for t in rows for name in t.grade.components})
    known = {n: [x for t in rows if isfinite(x := t.grade.components.get(n, nan))] for n in names}
    return {name: fmean(values) for name, values in known.items() if values}


def _question(rows: Sequence[Trajectory]) -> QuestionScore:
    return QuestionScore(id=rows[0].prompt.id, n=len(rows), correct=sum(t.grade.correct for t in rows))
