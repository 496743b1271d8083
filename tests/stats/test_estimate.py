"""Single-sample estimates against scipy and hand computation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.estimate import clustered_mean, iqm, jeffreys, mean_t, variance_components

floats = st.lists(st.floats(-10, 10), min_size=3, max_size=12)


@given(floats)
def test_t_interval_is_scipys(x: list[float]) -> None:
    found = mean_t(x)
    se = stats.sem(x)
    assert found.n == len(x)
    if se > 1e-9:
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=se)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("x", [[], [0.4], [0.4, 0.6], [0.4, None, 0.6], [float("nan"), 0.5]])
def test_fewer_than_three_values_have_no_interval_and_say_so(x: list[float | None]) -> None:
    found = mean_t(x)
    assert found.low is None
    assert found.high is None
    assert found.note == (f"n={found.n}, no interval" if found.n else "no value")


def test_iqm_is_blind_to_a_quarter_of_failures() -> None:
    assert iqm([0.0, 0.7, 0.7, 0.7]) == pytest.approx(0.7)
    assert iqm([]) is None


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 4)])
def test_jeffreys(k: int, n: int) -> None:
    found = jeffreys(k, n)
    assert found.value == k / n
    assert found.low == pytest.approx(0.0 if k == 0 else stats.beta.ppf(0.025, k + 0.5, n - k + 0.5))
    assert found.high == pytest.approx(1.0 if k == n else stats.beta.ppf(0.975, k + 0.5, n - k + 0.5))


def test_jeffreys_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="k=3 of n=2"):
        jeffreys(3, 2)


def test_samples_of_one_question_count_as_one_unit() -> None:
    rng = np.random.default_rng(0)
    correct = rng.binomial(8, rng.beta(0.5, 0.5, size=300))
    mean, se = clustered_mean(list(correct), [8] * 300)
    assert mean == pytest.approx(correct.sum() / 2400)
    assert se == pytest.approx(np.std(correct / 8, ddof=1) / np.sqrt(300))
    assert se is not None
    assert se > 1.5 * np.sqrt(mean * (1 - mean) / 2400), "the naive standard error would be far too small"


def test_variance_components_recover_a_planted_spread() -> None:
    rng = np.random.default_rng(1)
    starts = np.repeat(np.arange(400), 5)
    x = rng.normal(0, 0.03, 400)[starts] + rng.normal(0, 0.01, 2000)
    found = variance_components(list(x), [str(s) for s in starts])
    assert found["sd_within"] == pytest.approx(0.01, rel=0.05)
    assert found["sd_between"] == pytest.approx(0.03, rel=0.1)
    assert variance_components([0.1, 0.2], ["a", "a"])["sd_between"] is None
