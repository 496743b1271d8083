"""Scores of many runs on one or several tasks as one number: mean, median, IQM, optimality gap, profile, P(A > B).

An arm is a sequence of tasks, each an array of run scores; strata are tasks. Definitions as in Agarwal et al.
(NeurIPS 2021, "Deep RL at the edge of the statistical precipice"); committed numbers of their library are the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

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
    return float(stats.trim_mean(np.concatenate(list(tasks)), 0.25))


def optimality_gap(tasks: Tasks, goal: float = 1.0) -> float:
    """goal - mean(min(score, goal)): what is missing to the goal, failures included."""
    return float(goal - np.mean([np.mean(np.minimum(t, goal)) for t in tasks]))


AGGREGATES: Mapping[str, Callable[[Tasks], float]] = {
    "mean": mean_of_means,
    "median": median_of_means,
    "IQM": interquartile_mean,
    "optimality gap": optimality_gap,
}


def resampled(tasks: Tasks, rng: np.random.Generator, *, joint: bool = False) -> list[np.ndarray]:
    """One stratified bootstrap sample: runs with replacement inside each task.

    `joint` draws the same run indices in every task, for tables whose rows are seed pairs.
    """
    if joint:
        if len({len(t) for t in tasks}) > 1:
            raise ValueError(f"joint resampling needs equally many runs per task, got {[len(t) for t in tasks]}")
        picks = rng.integers(0, len(tasks[0]), len(tasks[0]))
        return [t[picks] for t in tasks]
    return [t[rng.integers(0, len(t), len(t))] for t in tasks]


def bootstrap_interval(
    tasks: Tasks,
    statistic: Callable[[Tasks], float],
    rng: np.random.Generator,
    resamples: int = 5000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic under the stratified bootstrap."""
    drawn = np.array([statistic(resampled(tasks, rng)) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def aggregates(tasks: Tasks, rng: np.random.Generator, resamples: int = 5000) -> dict[str, Estimate]:
    """All four, from the same bootstrap samples; no interval below twenty (run, task) cells."""
    kept = [x for x in (finite([float(v) for v in t]) for t in tasks) if len(x)]
    n = sum(len(t) for t in kept)
    if not kept:
        return {name: Estimate(value=None, n=0, estimator=name, note="no value") for name in AGGREGATES}
    names = {name: f"{name} of (run, task) scores, stratified bootstrap" for name in AGGREGATES}
    if n < MIN_CELLS:
        note = f"n={n}, no interval: a bootstrap over fewer than {MIN_CELLS} runs under-covers"
        return {k: Estimate(value=f(kept), n=n, estimator=names[k], note=note) for k, f in AGGREGATES.items()}
    samples = [resampled(kept, rng) for _ in range(resamples)]
    found = {}
    for name, statistic in AGGREGATES.items():
        low, high = np.quantile([statistic(s) for s in samples], [0.025, 0.975])
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

    def once() -> float:
        if not paired:
            return improvement_probability(resampled(a, rng), resampled(b, rng))
        picks = [rng.integers(0, len(x), len(x)) for x in a]
        return improvement_probability([x[p] for x, p in zip(a, picks, strict=True)],
                                       [y[p] for y, p in zip(b, picks, strict=True)])  # fmt: skip

    low, high = np.quantile([once() for _ in range(resamples)], [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=cells, estimator=name)


def profile(
    tasks: Tasks, levels: Sequence[float], rng: np.random.Generator, resamples: int = 2000
) -> dict[str, list[float] | None]:
    """Performance profile: share of (run, task) scores above each level, with a pointwise bootstrap band.

    The band is None below twenty cells.
    """
    grid = np.asarray(levels, dtype=float)

    def share(sample: Tasks) -> np.ndarray:
        return np.asarray(np.mean([(t[:, None] > grid).mean(axis=0) for t in sample], axis=0))

    value = [float(v) for v in share(tasks)]
    if sum(len(t) for t in tasks) < MIN_CELLS:
        return {"value": value, "low": None, "high": None}
    drawn = np.array([share(resampled(tasks, rng)) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {"value": value, "low": [float(v) for v in low], "high": [float(v) for v in high]}
