"""Which dimension of a search mattered: fANOVA and PED-ANOVA side by side, and whether resampling keeps their order."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

LEAST = 10  # complete trials; fewer say nothing
RESAMPLES, FLIPS = 20, 0.10  # bootstrap over trials; share of other top-two orders above which it is "not stable"


def importances(trials: Sequence[FrozenTrial], at: int, seed: int = 0) -> dict[str, Any] | None:
    """Evaluator -> dimension -> share of the score's variance, its range over resamples, and whether the order holds.

    `at` is the place of the score among a trial's values. None for fewer than `LEAST` trials. Descriptive, for tuning
    only: the sampler chose the points, so it is no evidence about an algorithm's components.
    """
    if len(trials) < LEAST:
        return None
    rng = np.random.default_rng(seed)
    samples = [rng.integers(0, len(trials), len(trials)) for _ in range(RESAMPLES)]
    makers: dict[str, Callable[[], BaseImportanceEvaluator]] = {
        "fANOVA": lambda: FanovaImportanceEvaluator(n_trees=32, seed=seed),
        "PED-ANOVA": PedAnovaImportanceEvaluator,
    }
    found: dict[str, Any] = {"n": len(trials), "resamples": RESAMPLES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, make in makers.items():
            value = _shares(make(), trials, at)
            again = [_shares(make(), [trials[i] for i in sample], at) for sample in samples]
            found[name] = _summary(value, [a for a in again if a])
    return found


def _shares(evaluator: BaseImportanceEvaluator, trials: Sequence[FrozenTrial], at: int) -> dict[str, float]:
    values = [t.values[at] for t in trials]
    if len(set(values)) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials([
        optuna.create_trial(params=t.params, distributions=t.distributions, value=v)
        for t, v in zip(trials, values, strict=True)
    ])  # fmt: skip
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _summary(value: dict[str, float], again: Sequence[dict[str, float]]) -> dict[str, Any]:
    shares = {
        path: {
            "value": v,
            "low": float(np.quantile([a.get(path, 0.0) for a in again], 0.05)) if again else None,
            "high": float(np.quantile([a.get(path, 0.0) for a in again], 0.95)) if again else None,
        }
        for path, v in value.items()
    }
    tops = Counter(tuple(sorted(a, key=lambda p: -a[p])[:2]) for a in again)
    flips = 1 - tops[tuple(list(value)[:2])] / len(again) if again else 1.0
    return {"shares": shares, "flips": flips, "stable": bool(again) and flips <= FLIPS}
