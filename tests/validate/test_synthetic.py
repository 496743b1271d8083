"""The generators do what they say, and the detectors meet their gates on a sample of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.stats.estimate import poisson_rate
from harness.validate import family_a, family_b, family_c
from harness.validate.curves import Curve, bent
from harness.validate.score import Judged, judge, summary
from harness.validate.targets import TYPES, WARNINGS

FAMILIES = {"a": family_a.curve, "b": family_b.curve, "c": family_c.curve}
Make = Callable[[int, str | None], Curve]


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("kind", [None, *TYPES])
def test_curves_are_reproducible_and_faults_begin_at_their_onset(make: Make, kind: str | None) -> None:
    curve, again = make(3, kind), make(3, kind)
    assert all(np.array_equal(curve.logged[k], again.logged[k], equal_nan=True) for k in curve.logged)
    lengths = {len(v) for v in (*curve.logged.values(), *curve.clean.values())}
    assert lengths == {curve.length}
    if kind is None:
        assert curve.fault is None
        return
    assert curve.fault is not None
    assert 1 < curve.fault.onset <= curve.length
    changed = [k for k, v in curve.clean.items() if curve.fault.onset < len(v) and not np.allclose(v[-1], v[0])]
    assert changed
    rows = list(curve.rows(curve.logged))
    assert [r["step"] for r in rows] == list(range(1, curve.length + 1))
    assert all(v is None or v == v for r in rows for v in r.values())


def test_a_bent_curve_goes_from_one_level_to_the_other() -> None:
    weight = np.array([0.0, 0.5, 1.0])
    assert bent(np.full(3, 4.0), 1.0, weight).tolist() == pytest.approx([4.0, 2.0, 1.0])
    assert bent(np.full(3, 4.0), 0.0, weight).tolist() == pytest.approx([4.0, 2.0, 0.0])


def test_gates_on_a_sample() -> None:
    """Recall >= .95, p90 delay <= 35 steps, and no false alarm in some ten thousand steps; the report has them all."""
    judged = [judge(make(1000, kind)) for make in FAMILIES.values() for kind in (None, *TYPES)]
    found = summary(judged)
    alarm = found["alarm_types"]
    assert alarm["recall"] >= 0.95
    assert alarm["delay"]["p90"] <= 35
    assert found["healthy_with_pre_onset"]["false_alarms"] == 0
    assert found["healthy_with_pre_onset"]["steps"] > 8_000


def test_a_solved_run_is_never_a_collapse() -> None:
    """An entropy that ends before most groups are right may be a degradation for a while."""
    solved = [judge(family_a.solved(seed)) for seed in range(3)]
    assert [j.collapses for j in solved] == [0] * 3
    assert sum(j.early for j in solved) <= 1


def judged(**changes: object) -> Judged:
    fields: dict[str, object] = {
        "name": "x", "kind": "kl_blowup", "shape": "step", "steps": 300, "healthy_steps": 99, "met": 102, "onset": 100,
        "found": 101, "confirm": 110, "early": 0, "others": (), "warnings": 0, "collapses": 0, "solved": False,
    }  # fmt: skip
    return Judged(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_counted() -> None:
    found = summary(
        [
            judged(),
            judged(name="missed", confirm=None, found=None),
            judged(name="unreachable", met=None, confirm=None, found=None),
            judged(name="early", early=1, others=("grad_explosion",)),
            judged(name="healthy", kind=None, shape=None, healthy_steps=900, met=None, onset=None, confirm=None),
        ]
    )
    kind = found["types"]["kl_blowup"]
    assert (kind["faults"], kind["out_of_reach"], kind["caught"], kind["missed"]) == (4, 1, 2, ["missed"])
    assert kind["recall"] == pytest.approx(2 / 3)
    assert kind["precision"] == pytest.approx(2 / 4)
    assert kind["delay"]["median"] == 8
    assert kind["delay_from_onset"]["median"] == 10
    assert kind["onset_error"]["median"] == 1
    assert found["healthy"]["steps"] == 900
    assert found["healthy_with_pre_onset"]["false_alarms"] == 1
    assert found["confusion"]["kl_blowup"] == {"kl_blowup": 2, "none": 2, "grad_explosion": 1}
    assert "grad_spike" in WARNINGS


def test_the_exact_interval_of_a_rate() -> None:
    """0 events: 3.69 / exposure above; 3 events: the tabulated .6187 and 8.7673."""
    assert poisson_rate(0, 1000.0) == (0.0, pytest.approx(3.6889e-3, rel=1e-4))
    assert poisson_rate(3, 1.0) == (pytest.approx(0.61867, rel=1e-4), pytest.approx(8.76727, rel=1e-4))
    with pytest.raises(ValueError):
        poisson_rate(1, 0.0)
