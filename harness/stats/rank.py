"""How certain a ranking is: bootstrap over seeds, jointly for all arms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def rank_distribution(
    scores: Mapping[str, Mapping[int, float]], resamples: int = 4000, seed: int = 0
) -> dict[str, list[float]]:
    """Arm -> probability of rank 1, 2, ... of the mean score when seed pairs are resampled.

    Seeds are resampled jointly, so the pairing is kept; ties share their ranks equally in expectation (random order).
    Only seeds that every arm has are used. Percentile bootstraps over few seeds are too sure of themselves: read n.
    """
    common = sorted(set.intersection(*(set(s) for s in scores.values()))) if scores else []
    if not common:
        return {}
    rng = np.random.default_rng(seed)
    names = list(scores)
    table = np.array([[scores[name][s] for name in names] for s in common])
    picks = rng.integers(0, len(common), size=(resamples, len(common)))
    means = table[picks].mean(axis=1) + rng.uniform(-1e-12, 1e-12, size=(resamples, len(names)))
    ranks = (-means).argsort(axis=1).argsort(axis=1)
    shares = {name: np.bincount(ranks[:, i], minlength=len(names)) / resamples for i, name in enumerate(names)}
    return {name: [float(x) for x in share] for name, share in shares.items()}
