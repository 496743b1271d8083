"""pass@k, avg@k and how many groups will be informative, from (samples, correct) per question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

from harness.stats.estimate import MIN_N, Estimate, jeffreys, mean_t


def pass_at(k: int, num_samples: int, num_correct: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right): 1 - C(n-c, k) / C(n, k), for k <= n.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def informative(group: int, num_samples: int, num_correct: int) -> float:
    """Estimate of P(a group of G samples holds right and wrong ones) = 1 - p^G - (1-p)^G.

    Unbiased for G <= n, by counting the groups among the samples: 1 - [C(c, G) + C(n-c, G)] / C(n, G). Beyond, the
    formula has p = c/n, which gives too little where p is neither 0 nor 1 but was measured as such.
    """
    if group <= num_samples:
        same = comb(num_correct, group) + comb(num_samples - num_correct, group)
        return 1 - same / comb(num_samples, group)
    p = num_correct / num_samples
    return 1 - float(p**group) - float((1 - p) ** group)


def over_questions(values: Sequence[float], estimator: str) -> Estimate:
    """Mean over questions with a t interval: samples of one question count as one unit (a cluster).

    Where every question is 0, or every one 1, nothing varies and the interval is Jeffreys' over questions.
    """
    if len(values) >= MIN_N and set(values) in ({0.0}, {1.0}):
        share = jeffreys(round(sum(values)), len(values))
        name = f"{estimator}, mean over questions, Jeffreys interval, one unit per question"
        return replace(share, value=float(values[0]), estimator=name)
    found = mean_t(values)
    return Estimate(
        value=found.value,
        low=None if found.low is None else max(0.0, found.low),
        high=None if found.high is None else min(1.0, found.high),
        n=found.n,
        estimator=f"{estimator}, mean over questions, t interval clustered by question",
        note=found.note,
    )
