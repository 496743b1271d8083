"""Scores of many runs on one or several tasks as one number: mean, median, IQM, optimality gap, profile, P(A > B).

An arm is a sequence of tasks, each an array of run scores; strata are tasks. Definitions as in Agarwal et al.
(NeurIPS 2021, "Deep RL at the edge of the statistical precipice"); committed numbers of their library are the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.stats.estimate import Estimate, finite

Tasks = Sequence[np.ndarray]  # run scores by task
MIN_CELLS = 20  # (run, task) cells below which a percentile bootstrap covers far less than it says


def mean_of_means(tasks: Tasks) -> float:
    """Mean over tasks of the mean over runs."""
    return float(np.mean([np.mean(t) for t in tasks]))


def median_of_means(tasks: Tasks) -> float:
    """Median over tasks of the mean over runs."""
    return float(np.median([np.mean(t) for t in tasks]))


def interquartile_mean(tasks: Tasks) -> float:
    """Mean of the middle half of all (run, task) scores; blind to a quarter of failed runs, so never shown alone."""
    return float(_middle(np.concatenate(list(tasks))))


def optimality_gap(tasks: Tasks, goal: float = 1.0) -> float:
    """goal - mean(min(score, goal)): what is missing to the goal, failures included."""
    return float(goal - np.mean([np.mean(np.minimum(t, goal)) for t in tasks]))


def _middle(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: a quarter of the values, rounded down, is cut at either end."""
    cut = int(0.25 * scores.shape[-1])
    return np.asarray(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(axis=-1))


AGGREGATES: Mapping[str, Callable[[Tasks], float]] = {
    "mean": mean_of_means,
    "median": median_of_means,
    "IQM": interquartile_mean,
    "optimality gap": optimality_gap,
}


def aggregates(tasks: Tasks, rng: np.random.Generator, resamples: int = 5000) -> dict[str, Estimate]:
    """All four, from the same bootstrap samples (runs with replacement inside each task).

    No interval below twenty (run, task) cells.
    """
    kept = [x for x in (finite([float(v) for v in t]) for t in tasks) if len(x)]
    n = sum(len(t) for t in kept)
    if not kept:
        return {name: Estimate(value=None, n=0, estimator=name, note="no value") for name in AGGREGATES}
    names = {name: f"{name} of (run, task) scores, stratified bootstrap" for name in AGGREGATES}
    if n < MIN_CELLS:
        note = f"n={n}, no interval: a bootstrap over fewer than {MIN_CELLS} runs under-covers"
        return {k: Estimate(value=f(kept), n=n, estimator=names[k], note=note) for k, f in AGGREGATES.items()}
    samples = [t[rng.integers(0, len(t), (resamples, len(t)))] for t in kept]
    means, goal = np.array([t.mean(axis=1) for t in samples]), 1.0
    drawn = {
        "mean": means.mean(axis=0), "median": np.median(means, axis=0),
        "IQM": _middle(np.concatenate(samples, axis=1)),
        "optimality gap": goal - np.mean([np.minimum(t, goal).mean(axis=1) for t in samples], axis=0),
    }  # fmt: skip
    found = {}
    for name, statistic in AGGREGATES.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        found[name] = Estimate(value=statistic(kept), low=float(low), high=float(high), n=n, estimator=names[name])
    return found


def improvement_probability(a: Tasks, b: Tasks) -> float:
    """P(A > B) + P(A = B)/2 for a random run of each, averaged over tasks: Mann-Whitney U / (n m)."""
    return float(np.mean([(x[:, None] > y).mean() + 0.5 * (x[:, None] == y).mean() for x, y in zip(a, b, strict=True)]))


def improvement(
    a: Tasks, b: Tasks, rng: np.random.Generator, resamples: int = 5000, *, paired: bool = False
) -> Estimate:
    """Probability of improvement with its bootstrap interval.

    `paired`: runs of equal index share their seed and are resampled together.
    """
    cells = sum(min(len(x), len(y)) for x, y in zip(a, b, strict=True))
    value = improvement_probability(a, b)
    name = f"P(A > B) of two random runs, {'joint ' if paired else ''}stratified bootstrap"
    if cells < MIN_CELLS:
        note = f"n={cells}, no interval: a bootstrap over fewer than {MIN_CELLS} runs under-covers"
        return Estimate(value=value, n=cells, estimator=name, note=note)

    drawn = []
    for x, y in zip(a, b, strict=True):
        wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        left = _counts(rng, len(x), resamples)
        right = left if paired else _counts(rng, len(y), resamples)
        drawn.append(((left @ wins) * right).sum(axis=1) / wins.size)
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=cells, estimator=name)


def _counts(rng: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """How often each of n runs is drawn in every bootstrap sample, [resamples, n]."""
    picks = rng.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=n * resamples).reshape(resamples, n).astype(float)


def profile(
    tasks: Tasks, levels: Sequence[float], rng: np.random.Generator, resamples: int = 2000
) -> dict[str, list[float] | None]:
    """Performance profile: share of (run, task) scores above each level, with a pointwise bootstrap band.

    The band is None below twenty cells.
    """
    grid = np.asarray(levels, dtype=float)

    above = [(t[:, None] > grid).astype(float) for t in tasks]
    value = [float(v) for v in np.mean([t.mean(axis=0) for t in above], axis=0)]
    if sum(len(t) for t in tasks) < MIN_CELLS:
        return {"value": value, "low": None, "high": None}
    drawn = np.mean([_counts(rng, len(t), resamples) @ t / len(t) for t in above], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {"value": value, "low": [float(v) for v in low], "high": [float(v) for v in high]}
