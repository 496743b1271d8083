"""Aggregates over runs and tasks: against numbers of rliable, and by properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.stats.aggregate import (
    AGGREGATES,
    aggregates,
    improvement,
    improvement_probability,
    profile,
)

ORACLE = json.loads((Path(__file__).parent / "fixtures/rliable.json").read_text())["cases"]
CASES = [pytest.param(case, id=name) for name, case in ORACLE.items()]


def tasks(table: Any) -> list[np.ndarray]:
    return list(np.array(table).T)


@pytest.mark.parametrize("case", CASES)
def test_points_agree_with_rliable(case: dict[str, Any]) -> None:
    for name, statistic in AGGREGATES.items():
        assert statistic(tasks(case["a"])) == pytest.approx(case["values"][name], abs=1e-12)
    found = improvement_probability(tasks(case["a"]), tasks(case["b"]))
    assert found == pytest.approx(case["improvement"], abs=1e-12)
    shown = profile(tasks(case["a"]), case["levels"], np.random.default_rng(0), resamples=5)
    assert shown["value"] == pytest.approx(case["profile"], abs=1e-12)


@pytest.mark.parametrize("name", ["smooth", "one task"])
@pytest.mark.parametrize("statistic", list(AGGREGATES))
def test_bootstrap_intervals_agree_with_rliable(name: str, statistic: str) -> None:
    case = ORACLE[name]
    found = aggregates(tasks(case["a"]), np.random.default_rng(3), resamples=20_000)[statistic]
    assert (found.low, found.high) == pytest.approx(case["intervals"][statistic], abs=1e-3)


def test_the_generator_decides_the_interval() -> None:
    a = tasks(ORACLE["smooth"]["a"])
    first, second, third = (aggregates(a, np.random.default_rng(s), resamples=50)["IQM"] for s in (1, 1, 2))
    assert first == second != third


def test_a_collapsed_run_moves_the_mean_where_the_iqm_stays() -> None:
    sound = [np.array([0.7, 0.71, 0.72, 0.73, 0.74])]
    broken = [np.array([0.01, 0.71, 0.72, 0.73, 0.74])]
    assert AGGREGATES["IQM"](broken) == AGGREGATES["IQM"](sound)
    assert AGGREGATES["mean"](broken) < AGGREGATES["mean"](sound) - 0.1


def test_no_bootstrap_interval_below_twenty_cells() -> None:
    few, many = [np.linspace(0.4, 0.6, 19)], [np.linspace(0.4, 0.6, 20)]
    for found in aggregates(few, np.random.default_rng(0), 50).values():
        assert found.low is None
        assert "n=19, no interval" in str(found.note)
    assert all(e.low is not None for e in aggregates(many, np.random.default_rng(0), 50).values())
    assert improvement(few, few, np.random.default_rng(0), 50).low is None
    assert profile(few, [0.5], np.random.default_rng(0), 50)["low"] is None


def test_paired_improvement_resamples_seeds_together() -> None:
    rng = np.random.default_rng(0)
    seed_effect = rng.normal(0, 0.2, 30)
    a, b = [seed_effect + 0.11], [seed_effect]
    wide, narrow = (improvement(a, b, np.random.default_rng(1), 400, paired=p) for p in (False, True))
    assert wide.value == narrow.value
    assert narrow.high - narrow.low < wide.high - wide.low  # type: ignore[operator]
