"""Makes tests/stats/fixtures/rliable.json: aggregates, intervals, P(A > B) and profiles computed by rliable.

rliable breaks beside pandas 3 and is not a dependency, so it runs in an environment of its own:

    python -m venv /some/where && /some/where/bin/pip install 'rliable==1.2.0' 'pandas<3' 'arch<8'
    /some/where/bin/python scripts/record_rliable.py

Its bootstrap draws from numpy's global generator whatever it is given, hence the `np.random.seed` calls.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

REPS = 50_000
OUT = Path(__file__).parents[1] / "tests/stats/fixtures/rliable.json"
STATISTICS = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "IQM": metrics.aggregate_iqm,
    "optimality gap": metrics.aggregate_optimality_gap,
}


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two arms of [runs, tasks] scores: smooth, with collapses, and one task only."""
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.62, 0.03, (10, 4)), rng.normal(0.60, 0.03, (10, 4))
    collapsed = a.copy()
    collapsed[rng.random(a.shape) < 0.15] = 0.1
    one = rng.normal(0.5, 0.02, (20, 1)), rng.normal(0.51, 0.02, (24, 1))
    return {"smooth": (a, b), "collapses": (collapsed, b), "one task": one}


def record(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """What rliable says about one pair of arms."""
    values, intervals = {}, {}
    for name, statistic in STATISTICS.items():
        np.random.seed(0)  # noqa: NPY002
        point, interval = library.get_interval_estimates({"a": a}, lambda x, f=statistic: np.array([f(x)]), reps=REPS)
        values[name], intervals[name] = float(point["a"][0]), [float(v) for v in interval["a"][:, 0]]
    np.random.seed(0)  # noqa: NPY002
    point, interval = library.get_interval_estimates({"p": (a, b)}, metrics.probability_of_improvement, reps=2000)
    levels = [0.1, 0.5, 0.58, 0.62, 0.66]
    profile, _ = library.create_performance_profile({"a": a}, np.array(levels), reps=100)
    return {
        "a": a.tolist(), "b": b.tolist(), "values": values, "intervals": intervals,
        "improvement": float(point["p"]), "improvement_interval": [float(v) for v in interval["p"].ravel()],
        "levels": levels, "profile": [float(v) for v in profile["a"]],
    }  # fmt: skip


if __name__ == "__main__":
    found = {name: record(*pair) for name, pair in tables().items()}
    packages = {p: version(p) for p in ("rliable", "arch", "pandas", "numpy")}
    OUT.write_text(json.dumps({"packages": packages, "reps": REPS, "cases": found}, indent=1) + "\n")
    print(OUT)
