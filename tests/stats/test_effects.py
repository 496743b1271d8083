"""Effects of designed experiments: planted ones are found, against statsmodels, by identities, at the nominal rate."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.stats.effects import collapse_contrasts, expected_best, fit_effects, shapley_estimates, shapley_values

CUBE = dict.fromkeys("abcd", ("without", "with"))
MIXED = {"ratio": ("token", "sequence", "product"), "clip": ("tight", "wide"), "norm": ("off", "on")}


def runs(factors: dict[str, tuple[str, ...]], seeds: int) -> tuple[list[dict[str, str]], list[int]]:
    cells = [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]
    return [c for _ in range(seeds) for c in cells], [s for s in range(seeds) for _ in cells]


def on(setting: dict[str, str], name: str) -> float:
    return float(setting[name] == "with")


@settings(max_examples=25, deadline=None)
@given(
    main=st.lists(st.floats(-1, 1), min_size=4, max_size=4), cross=st.floats(-1, 1), shift=st.floats(-5, 5)
)  # fmt: skip
def test_without_noise_the_planted_effects_come_out(main: list[float], cross: float, shift: float) -> None:
    cells, seeds = runs(CUBE, 2)
    y = [
        sum(b * on(c, f) for b, f in zip(main, CUBE, strict=True)) + cross * on(c, "a") * on(c, "b") + shift * s
        for c, s in zip(cells, seeds, strict=True)
    ]
    fit = fit_effects(CUBE, cells, seeds, y)
    found = {e.factors: e.value for e in fit.effects}
    expected = {("a",): main[0] + cross / 2, ("b",): main[1] + cross / 2, ("c",): main[2], ("d",): main[3]}
    for factors, value in found.items():
        planted = cross if factors == ("a", "b") else expected.get(factors, 0.0)
        assert value == pytest.approx(planted, abs=1e-9)
    assert fit.interactions
    assert len(found) == 4 + 6


def test_a_main_effect_is_the_difference_of_marginal_means() -> None:
    cells, seeds = runs(MIXED, 3)
    y = np.random.default_rng(0).normal(size=len(cells))
    fit = fit_effects(MIXED, cells, seeds, y)
    frame = pd.DataFrame(cells).assign(y=y)
    for effect in (e for e in fit.effects if len(e.factors) == 1):
        means = frame.groupby(effect.factors[0])["y"].mean()
        reference = MIXED[effect.factors[0]][0]
        assert effect.value == pytest.approx(means[effect.levels[0]] - means[reference])
    cell = frame.groupby(["ratio", "clip"])["y"].mean()
    [found] = [e for e in fit.of("ratio", "clip") if e.levels == ("product", "wide")]
    double = cell["product", "wide"] - cell["token", "wide"] - cell["product", "tight"] + cell["token", "tight"]
    assert found.value == pytest.approx(double)


def test_statsmodels_agrees_also_with_missing_runs() -> None:
    rng = np.random.default_rng(1)
    cells, seeds = runs(CUBE, 3)
    keep = rng.permutation(len(cells))[:41]
    cells, seeds = [cells[i] for i in keep], [seeds[i] for i in keep]
    y = rng.normal(size=len(cells))
    frame = pd.DataFrame([{f: on(c, f) - 0.5 for f in CUBE} for c in cells]).assign(y=y, seed=seeds)
    theirs = smf.ols("y ~ (a + b + c + d) ** 2 + C(seed)", frame).fit()
    ours = fit_effects(CUBE, cells, seeds, y)
    for effect in ours.effects:
        name = ":".join(effect.factors)
        low, high = theirs.conf_int().loc[name]
        assert (effect.value, effect.low, effect.high) == pytest.approx((theirs.params[name], low, high))
        assert effect.p == pytest.approx(theirs.pvalues[name])
        assert effect.df == theirs.df_resid


def test_planted_effects_lie_in_their_intervals_at_the_nominal_rate() -> None:
    """200 studies of 16 cells x 3 seeds: 10 effects each, with noise per run and per seed."""
    rng = np.random.default_rng(2)
    cells, seeds = runs(CUBE, 3)
    planted = {"a": 0.1, "b": -0.05, "c": 0.0, "d": 0.02}
    true = {("a",): 0.14, ("b",): -0.01, ("c",): 0.0, ("d",): 0.02, ("a", "b"): 0.08}
    mean = np.array([sum(v * on(c, f) for f, v in planted.items()) + 0.08 * on(c, "a") * on(c, "b") for c in cells])
    hits = {"main": [], "cross": []}  # type: dict[str, list[bool]]
    for _ in range(200):
        y = mean + rng.normal(0, 0.05, 3)[seeds] + rng.normal(0, 0.03, len(cells))
        for e in fit_effects(CUBE, cells, seeds, y).effects:
            target = true.get(e.factors, 0.0)
            hits["main" if len(e.factors) == 1 else "cross"].append(e.low <= target <= e.high)
    for kind, found in hits.items():
        assert 0.92 <= np.mean(found) <= 0.98, kind


def test_what_a_design_cannot_tell_apart_is_not_estimated() -> None:
    half = [c for c in runs(CUBE, 1)[0] if sum(on(c, f) for f in CUBE) % 2 == 0]
    twice, seeds = half * 2, [0] * len(half) + [1] * len(half)
    y = np.random.default_rng(3).normal(size=len(twice))
    fraction = fit_effects(CUBE, twice, seeds, y)
    assert not fraction.interactions
    assert len(fraction.effects) == 4
    assert "main effects only" in (fraction.note or "")
    alone = fit_effects(CUBE, half[:1] * 2, [0, 1], [0.1, 0.2])
    assert alone.effects == ()
    assert alone.note


def test_bad_data_are_refused() -> None:
    cells, seeds = runs(CUBE, 1)
    with pytest.raises(ValueError, match="one each per run"):
        fit_effects(CUBE, cells, seeds[1:], [0.0] * 16)
    with pytest.raises(ValueError, match="not finite"):
        fit_effects(CUBE, cells, seeds, [float("nan")] * 16)
    with pytest.raises(ValueError, match="none of"):
        fit_effects({"a": ("x", "y")}, [{"a": "z"}], [0], [1.0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_shapley_values_share_out_the_whole_gain_and_average_all_orders(scores: list[float]) -> None:
    players = ("a", "b", "c")
    sets = [frozenset(p for p, bit in zip(players, bits, strict=True) if bit) for bits in product((0, 1), repeat=3)]
    worth = dict(zip(sets, scores, strict=True))
    found = shapley_values(players, worth)
    assert sum(found.values()) == pytest.approx(worth[frozenset(players)] - worth[frozenset()], abs=1e-9)
    orders = [("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c"), ("b", "c", "a"), ("c", "a", "b"), ("c", "b", "a")]
    for player in players:
        steps = [worth[frozenset(o[: o.index(player) + 1])] - worth[frozenset(o[: o.index(player)])] for o in orders]
        assert found[player] == pytest.approx(float(np.mean(steps)), abs=1e-9)


def test_shapley_needs_the_whole_cube_and_whole_seeds() -> None:
    cube = {frozenset(): 0.0, frozenset("a"): 0.2, frozenset("b"): 0.1, frozenset("ab"): 0.5}
    with pytest.raises(ValueError, match="1 of the 4 sets"):
        shapley_values(("a", "b"), {k: v for k, v in cube.items() if k != frozenset("ab")})
    partial = {k: v for k, v in cube.items() if k}
    found = shapley_estimates(("a", "b"), {0: cube, 1: {k: v + 0.1 for k, v in cube.items()}, 2: cube, 3: partial})
    assert (found["a"].value, found["a"].n) == (pytest.approx(0.3), 3)
    assert found["b"].value == pytest.approx(0.2)


def test_collapse_is_tested_exactly() -> None:
    """Eight pairs that differ in `a` alone, all of which collapse with it and none without: p = 2 / 2^8 (McNemar)."""
    factors = {"a": ("without", "with"), "b": ("without", "with")}
    cells, seeds = runs(factors, 4)
    a, b = collapse_contrasts(factors, cells, seeds, [c["a"] == "with" for c in cells])
    assert (a.k, a.n, a.k_reference, a.n_reference) == (8, 8, 0, 8)
    assert (a.only_level, a.only_reference) == (8, 0)
    assert a.p_paired == pytest.approx(2 / 2**8)
    assert a.p_fisher == pytest.approx(2 / 12870)  # 1 of C(16, 8) tables at either end
    assert (b.p_paired, b.p_fisher) == (1.0, 1.0)
    single = collapse_contrasts(factors, [{"a": "with", "b": "with"}, {"a": "without", "b": "without"}], [0, 0], [1, 0])
    assert [c.p_paired for c in single] == [None, None]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_expected_best_rises_from_the_mean_to_the_maximum(values: list[float]) -> None:
    best = expected_best(values)
    assert best[0] == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert best[-1] == pytest.approx(max(values), abs=1e-9)
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(best))
