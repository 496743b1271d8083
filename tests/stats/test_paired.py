"""Paired differences against scipy and statsmodels."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from harness.stats.paired import (
    holm,
    max_t_p,
    minimal_detectable_effect,
    paired_difference,
    pairs_needed,
    sd_upper,
    sign_flip_p,
)


def pair(n: int, shift: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(0.6, 0.03, n)
    return common + shift + rng.normal(0, 0.01, n), common + rng.normal(0, 0.01, n)


@pytest.mark.parametrize("n", [3, 5, 10, 15])
def test_paired_t_tost_and_sign_flip_are_those_of_the_libraries(n: int) -> None:
    a, b = pair(n)
    found = paired_difference(list(a), list(b), delta=0.02)
    reference = stats.ttest_rel(a, b)
    assert found.p_t == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert found.p_tost == pytest.approx(ttost_paired(a, b, -0.02, 0.02)[0])
    exact = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf)
    assert found.p_sign_flip == pytest.approx(exact.pvalue)


def test_the_smallest_sign_flip_p_of_five_pairs() -> None:
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(0.0625)


def test_monte_carlo_sign_flips_are_reproducible_and_close() -> None:
    a, b = pair(20, shift=0.003)
    p = sign_flip_p(a - b)
    assert p == sign_flip_p(a - b)
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_below_three_pairs_only_the_difference(n: int) -> None:
    found = paired_difference([0.5] * n, [0.4] * n, 0.02)
    assert found.low is None
    assert found.p_t is None
    assert found.note is not None
    assert found.value == (pytest.approx(0.1) if n else None)


def test_no_spread_decides_by_the_mean() -> None:
    assert paired_difference([0.5] * 4, [0.5] * 4, 0.02).p_t == 1.0
    assert paired_difference([0.6] * 4, [0.5] * 4, 0.02).p_sign_flip == pytest.approx(0.125)


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_difference([0.5], [0.4, 0.3], 0.02)


def test_holm_is_statsmodels() -> None:
    p = [0.04, 0.001, 0.03, 0.5, 0.03]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert holm([]) == []


@pytest.mark.parametrize(("n", "expected"), [(3, 3.26), (5, 1.68), (8, 1.16), (10, 1.00), (20, 0.66)])
def test_minimal_detectable_effects_of_the_method(n: int, expected: float) -> None:
    assert minimal_detectable_effect(1.0, n) == pytest.approx(expected, abs=0.005)


def test_seeds_needed_is_the_first_n_that_suffices() -> None:
    n = pairs_needed(0.03, 0.02)
    assert n is not None
    assert (minimal_detectable_effect(0.03, n) or 1) <= 0.02 < (minimal_detectable_effect(0.03, n - 1) or 1)
    assert pairs_needed(100.0, 0.01) is None


def test_upper_bound_of_the_sd_covers_four_of_five() -> None:
    rng = np.random.default_rng(0)
    bounds = np.array([sd_upper(float(rng.normal(0, 1, 5).std(ddof=1)), 5) for _ in range(2000)])
    assert np.mean(bounds > 1.0) == pytest.approx(0.8, abs=0.03)


def test_max_t_keeps_the_family_level_and_finds_a_planted_effect() -> None:
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    fired = [min(max_t_p(rng.normal(0, 1, (10, 4)) + rng.normal(0, 2, (10, 1)), pairs, 200)) < 0.05 for _ in range(120)]
    assert np.mean(fired) < 0.11
    scores = rng.normal(0, 0.02, (10, 4)) + np.array([0.2, 0.0, 0.0, 0.0])
    p = dict(zip(pairs, max_t_p(scores, pairs), strict=True))
    assert p[(1, 0)] < 0.01
    assert p[(2, 1)] > 0.05
