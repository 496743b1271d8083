"""Held-out score over entropy, the path that a run takes, and the fit R = b - a e^H (Cui et al. 2025, 2505.22617)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.stats.estimate import mean_t

ENTROPY = "entropy/exact"
POINTS = 5  # of a run, the least for two parameters and something left over


def trajectories(curves: Mapping[str, Any], panels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arm -> {runs: [{run, seed, entropy, score}], a, b, r2: estimates over counted runs}; from the data of the page.

    The entropy beside an evaluation after step s is that of the rollout batch sampled next, in step s + 1.
    """
    panel = next((p for p in panels if p["key"] == ENTROPY), None)
    found: dict[str, Any] = {}
    for arm, data in curves["arms"].items():
        known = {line["run"]: line for line in panel["arms"].get(arm, ())} if panel else {}
        paths = [_path(ln, known[ln["run"]]) for ln in data["runs"] if ln["counted"] and ln["run"] in known]
        paths = [p for p in paths if len(p["score"]) > 1]
        if paths:
            fits = {p["run"]: fit for p in paths if (fit := _fit(p["entropy"], p["score"])) is not None}
            found[arm] = {"runs": paths, **{name: _over(fits, i) for i, name in enumerate(("a", "b", "r2"))}}
    return found


def _path(line: Mapping[str, Any], entropy: Mapping[str, Any]) -> dict[str, Any]:
    points = [(x, y) for x, y in zip(entropy["x"], entropy["y"], strict=True) if y is not None]
    x, y = zip(*points, strict=True)
    at = np.interp(np.array(line["step"]) + 1, x, y)
    return {"run": line["run"], "seed": line["seed"], "entropy": [float(f"{v:.6g}") for v in at],
            "score": list(line["score"])}  # fmt: skip


def _fit(entropy: Sequence[float], score: Sequence[float]) -> tuple[float, float, float] | None:
    """Least squares of the score on e^H: a, b and the share of the variance explained."""
    x, y = np.exp(entropy), np.array(score)
    if len(x) < POINTS or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return None
    slope, b = np.polyfit(x, y, 1)
    rest = y - (slope * x + b)
    return -float(slope), float(b), float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())


def _over(fits: Mapping[str, tuple[float, float, float]], index: int) -> dict[str, Any]:
    found = mean_t([fit[index] for fit in fits.values()]).as_dict()
    return {**found, "note": found["note"] if fits else f"fewer than {POINTS} evaluations, or no spread",
            "estimator": "mean over runs of the least-squares fit R = b - a e^H, Student-t interval",
            "runs": [*fits]}  # fmt: skip
