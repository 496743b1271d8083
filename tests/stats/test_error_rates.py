"""How often a label is wrong, how often an interval covers, in simulated studies with known truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.stats.compare import compare_family
from harness.stats.estimate import mean_t
from harness.stats.paired import max_t_p
from tests.stats.simulated import arms, cells, false_winners, page, run

COMMITTED = Path(__file__).parents[2] / "results/reference/statistics"


@pytest.mark.parametrize(("n", "studies"), [(5, 1000), (10, 150)])
def test_false_winners_over_null_studies(n: int, studies: int) -> None:
    assert false_winners(studies, n, seed=n) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize("kind", [{"last": 0.3}, {"spread": 8.0}])
def test_one_deviating_arm_does_not_make_the_others_win(kind: dict[str, float]) -> None:
    """Permuting all labels presumes that all arms are equal; exchanges inside pairs do not."""
    assert false_winners(200, 10, seed=3, equal=5, **kind) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_permuting_all_labels_alone_would() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(200):
        found = arms(rng, 10, spread=8.0)
        table = np.array([list(a.scores.values()) for a in found]).T
        wrong += min(max_t_p(table, [(j, 0) for j in range(1, 6)], resamples=400)[:4]) < 0.05
    assert wrong / 200 > 0.08, "if this no longer fails, the second permutation is not needed"


def test_false_winners_with_collapses() -> None:
    assert false_winners(200, 8, seed=4, collapse=0.2) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(cells())), ids=lambda i: cells()[i].name)
def test_ten_thousand_null_studies_and_the_coverage_of_every_interval(index: int) -> None:
    cell = cells()[index]
    assert cell.low <= cell.run(cell.repeats, cell.seed) <= cell.high


def test_the_committed_rates_are_those_of_this_code_and_hold() -> None:
    data = json.loads((COMMITTED / "simulation.json").read_text())
    assert [c.key() for c in cells()] == [{k: c[k] for k in ("name", "repeats", "seed")} for c in data["cells"]]
    assert all(c["low"] <= c["rate"] <= c["high"] for c in data["cells"])
    assert (COMMITTED / "README.md").read_text() == page(data)


def test_simulation_goes_on_from_the_cells_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--out", str(tmp_path), "--scale", "0.002", "--workers", "1"]
    run(few)
    first = (tmp_path / "simulation.json").read_bytes()
    assert len(capsys.readouterr().out.splitlines()) == len(cells())
    run(few)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "simulation.json").read_bytes() == first


@pytest.mark.parametrize("n", [3, 5, 10])
def test_t_intervals_cover(n: int) -> None:
    rng = np.random.default_rng(n)
    found = [mean_t(list(rng.normal(0.6, 0.03, n))) for _ in range(1500)]
    assert 0.93 <= np.mean([e.low <= 0.6 <= e.high for e in found]) <= 0.97  # type: ignore[operator]


def test_real_differences_are_found() -> None:
    """Power at the minimal detectable effect of the first Holm step is at least 80 %."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(150):
        pair = arms(rng, 10, num=2, last=1.05 * 0.03 * np.sqrt(2))
        found += compare_family([(pair[1], pair[0])], 0.02)[0].label == "A>B"
    assert found / 150 >= 0.75
