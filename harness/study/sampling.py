"""Optuna's samplers and pruners as a search uses them, and its dimensions in Optuna's terms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

from harness.core.results import EVALS, read_lines
from harness.core.search import Dimension, PrunerName, SearchRecord
from harness.study.compare import PlannedRun

STARTUP = 8  # trials before a model of the response is trusted, where there are twice as many
CANDIDATES = 8  # of TPE: with Optuna's 24 a quarter of noisy searches get stuck beside the optimum
FLOOR = 30  # per cent of a run's budget before which nothing is pruned: fast starters may collapse, slow ones may win


def distribution(d: Dimension) -> BaseDistribution:
    """The dimension in Optuna's terms."""
    if d.values:
        return CategoricalDistribution(d.values)
    assert d.low is not None
    assert d.high is not None
    if d.integer:
        return IntDistribution(int(d.low), int(d.high), log=d.log)
    return FloatDistribution(d.low, d.high, log=d.log)


def make_sampler(record: SearchRecord, number: int) -> BaseSampler:
    """A sampler for trial `number`, seeded by it: a search that is continued asks what an uninterrupted one asks.

    TPE and GP begin with points of a Sobol sequence, whose place the storage keeps: random ones leave larger holes,
    and the first trials are taken by the defaults.
    """
    seed, trials = record.sampler_seed + number, record.trials
    startup = max(2, min(STARTUP, trials // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if record.sampler == "qmc" or (record.sampler in ("tpe", "gp") and number < startup):
            return QMCSampler(scramble=True, seed=record.sampler_seed, independent_sampler=RandomSampler(seed=seed))
        if record.sampler == "tpe":
            return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=startup,
                              n_ei_candidates=CANDIDATES, seed=seed)  # fmt: skip
        if record.sampler == "gp":
            return GPSampler(deterministic_objective=False, n_startup_trials=startup, seed=seed)
        if record.sampler == "nsga2":
            return NSGAIISampler(population_size=max(4, min(20, trials // 3)), seed=seed)
        return RandomSampler(seed=seed)


def make_pruner(name: PrunerName) -> BasePruner:
    """Compares trials at the same share of the budget, in per cent, and never below `FLOOR`."""
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=FLOOR)
    if name == "halving":
        return SuccessiveHalvingPruner(min_resource=FLOOR, reduction_factor=3)
    return NopPruner()


def seen(runs: Sequence[PlannedRun], points: int) -> dict[int, float]:
    """Per cent of the budget -> validation score, the mean over the runs, wherever all of them have been evaluated."""
    scores = [
        [float(e["score"]) for e in read_lines(r.folder / EVALS) if e["split"] == "validation" and e["step"] > 0]
        for r in runs
    ]
    reached = min((len(s) for s in scores), default=0)
    return {round(100 * (k + 1) / points): sum(s[k] for s in scores) / len(scores) for k in range(min(reached, points))}
