"""Held-out scores: the step-0 score, the best one, and whether performance is lost. Immutable, JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pydantic import Field

from harness.core.results import EvalRecord
from harness.monitor.series import State

LOST = 0.5  # of the best, or of the step-0 score
REGAINED = 0.8
BIG = 2000  # samples from which one evaluation says as much as two smaller ones in a row
SURE = 1.96  # two-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A held-out score as rules need it; from a CSV file it is the score alone."""

    step: int
    split: str
    score: float
    samples: int = 0  # in all; 0 = unknown
    shares: tuple[float, ...] = ()  # correct, per question
    questions: str = ""  # digest of the questions, in order
    means: tuple[tuple[str, float], ...] = ()  # metric -> value, where it is one that steps have too


def of_record(record: EvalRecord) -> Evaluation:
    """What rules need of a line of evals.jsonl."""
    ids = hashlib.blake2b("\n".join(q.id for q in record.questions).encode(), digest_size=8).hexdigest()
    means = {"reward/mean": record.reward_mean, "len/mean": record.length_mean, "len/trunc_rate": record.truncated}
    return Evaluation(
        step=record.step,
        split=record.split,
        score=record.score,
        samples=sum(q.n for q in record.questions),
        shares=tuple(q.correct / q.n for q in record.questions if q.n),
        questions=ids,
        means=tuple((key, value) for key, value in means.items() if value is not None),
    )


class Base(State):
    """The first evaluation of one split, at step 0."""

    step: int
    score: float
    samples: int
    shares: tuple[float, ...]
    questions: str
    means: dict[str, float]


class Point(State):
    """One later evaluation, judged."""

    step: int
    split: str
    score: float
    samples: int
    lost: bool  # under half of the best so far, beyond noise
    under_base: bool  # under half of the step-0 score
    gained: bool  # above the step-0 score, beyond noise
    regained: bool  # over 80 % of the best
    recovered: bool  # over 80 % of the step-0 score


class Scores(State):
    """All held-out scores of a run, oldest first."""

    bases: dict[str, Base] = Field(default_factory=dict)
    points: tuple[Point, ...] = ()
    best: float | None = None

    def add(self, e: Evaluation) -> Scores:
        """With one more evaluation; one that is known already changes nothing."""
        if e.split not in self.bases:
            base = Base(
                step=e.step,
                score=e.score,
                samples=e.samples,
                shares=e.shares,
                questions=e.questions,
                means=dict(e.means),
            )
            best = e.score if self.best is None else max(self.best, e.score)
            return self.model_copy(update={"bases": {**self.bases, e.split: base}, "best": best})
        known = [(p.split, p.step) for p in self.points]
        if (e.split, e.step) in known or e.step == self.bases[e.split].step:
            return self
        base, best = self.bases[e.split], max(e.score, e.score if self.best is None else self.best)
        low, high = _paired(base, e)
        drop = SURE * math.hypot(_error(best, e.samples), _error(e.score, e.samples))
        point = Point(
            step=e.step,
            split=e.split,
            score=e.score,
            samples=e.samples,
            lost=e.score < LOST * best and best - e.score > drop,
            under_base=low > LOST * base.score,
            gained=high < 0,
            regained=e.score > REGAINED * best,
            recovered=e.score > REGAINED * base.score,
        )
        return self.model_copy(update={"points": (*self.points, point), "best": best})

    @property
    def lost(self) -> bool:
        """Under half of the best in two evaluations in a row, or in one of 2,000 samples."""
        last = self.points[-2:]
        return bool(last) and last[-1].lost and (last[-1].samples >= BIG or (len(last) == 2 and last[0].lost))

    @property
    def gained(self) -> bool:
        """Whether any evaluation lay above the step-0 score of its split, beyond noise."""
        return any(p.gained for p in self.points)

    def at_start(self, key: str) -> float | None:
        """A metric at step 0, from the largest evaluation where that has 2,000 samples."""
        found = max(self.bases.values(), key=lambda b: b.samples, default=None)
        return found.means.get(key) if found is not None and found.samples >= BIG else None

    def start_error(self) -> float:
        """Standard error of the step-0 score, 0 where it is unknown."""
        found = max(self.bases.values(), key=lambda b: b.samples, default=None)
        return 0.0 if found is None else _error(found.score, found.samples)


def _paired(base: Base, e: Evaluation) -> tuple[float, float]:
    """95 % interval of the loss since step 0, mean over questions of (then - now); paired where questions are the same.

    Without the questions it is the difference of the scores alone.
    """
    loss = base.score - e.score
    if e.shares and e.questions == base.questions and len(e.shares) == len(base.shares):
        d = [then - now for then, now in zip(base.shares, e.shares, strict=True)]
        half = SURE * _deviation(d) / math.sqrt(len(d))
    else:
        half = SURE * math.hypot(_error(base.score, base.samples), _error(e.score, e.samples))
    return loss - half, loss + half


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = fmean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _error(score: float, samples: int) -> float:
    """Binomial standard error; 0 where the number of samples is unknown."""
    return math.sqrt(max(0.0, score * (1 - score)) / samples) if samples else 0.0
