"""Held-out questions: question-clustered intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from harness.stats.estimate import Estimate, clustered_mean, jeffreys

FEW = 30  # questions below which a normal interval of a share is not used


def clustered(correct: Sequence[int], samples: Sequence[int], level: float = 0.95) -> Estimate:
    """Avg@k with an interval whose unit is the question; Jeffreys where few questions have one sample each."""
    n = sum(s > 0 for s in samples)
    if n < FEW and all(s == 1 for s in samples):
        return jeffreys(sum(correct), n, level)
    value, se = clustered_mean(correct, samples)
    name = "mean over questions, question-clustered t interval"
    if se is None:
        return Estimate(value=value, n=n, level=level, estimator=name, note=f"n={n}, no interval")
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * se
    return Estimate(
        value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n, level=level, estimator=name
    )


def paired_questions(a: Mapping[str, float], b: Mapping[str, float], level: float = 0.95) -> Estimate:
    """Mean difference over the questions both answered, with the interval of the per-question differences."""
    common = sorted(a.keys() & b.keys())
    d = np.array([a[q] - b[q] for q in common])
    name = "mean paired question difference, t interval"
    if len(d) < 3:
        value = float(d.mean()) if len(d) else None
        return Estimate(value=value, n=len(d), level=level, estimator=name, note=f"n={len(d)}, no interval")
    half = float(stats.t.ppf(0.5 + level / 2, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    mean = float(d.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(d), level=level, estimator=name)
