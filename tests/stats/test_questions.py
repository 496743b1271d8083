"""The question is the unit of an evaluation."""

from __future__ import annotations

import numpy as np

from harness.stats.estimate import clustered_mean
from harness.stats.questions import clustered, paired_questions


def test_the_clustered_interval_covers_and_the_naive_one_does_not() -> None:
    """100 questions x 8 samples; naive standard errors take 800 independent answers for granted."""
    rng = np.random.default_rng(0)
    hit, naive = [], []
    for _ in range(800):
        rate = rng.beta(0.8, 0.8, 100)
        correct = rng.binomial(8, rate)
        found = clustered([int(c) for c in correct], [8] * 100)
        hit.append(found.low <= 0.5 <= found.high)  # type: ignore[operator]
        share = correct.sum() / 800
        naive.append(abs(share - 0.5) <= 1.96 * np.sqrt(share * (1 - share) / 800))
    assert 0.93 <= np.mean(hit) <= 0.97
    assert np.mean(naive) < 0.8


def test_few_questions_get_an_interval_inside_the_unit_range() -> None:
    found = clustered([1] * 12, [1] * 12)
    assert found.value == 1.0
    assert found.high == 1.0
    assert 0.7 < (found.low or 0.0) < 0.9


def test_pairing_questions_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(400)
    a = {f"q{i}": float(h < 0.62) for i, h in enumerate(hard)}
    b = {f"q{i}": float(h < 0.60) for i, h in enumerate(hard)}
    found = paired_questions(a, {**b, "other": 1.0})
    assert found.n == 400
    se = clustered_mean([int(v) for v in a.values()], [1] * 400)[1]
    assert found.high - found.low < 2 * 1.96 * 1.41 * se  # type: ignore[operator]
    assert paired_questions({"q": 1.0}, {}).value is None
