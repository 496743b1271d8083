"""What a study needs, against the table of METHOD 3.5 and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.paired import tost_p
from harness.stats.power import (
    beta_rates,
    informative_groups,
    questions_for_noise,
    questions_needed,
    tost_pairs_needed,
    tost_power,
)


@pytest.mark.parametrize(("sd", "needed"), [(0.03, 21), (0.02, 11), (0.015, 7)])
def test_pairs_for_equivalence(sd: float, needed: int) -> None:
    assert tost_pairs_needed(sd, 0.02) == needed


def test_tost_power_is_what_simulation_finds() -> None:
    rng = np.random.default_rng(0)
    found = np.mean([tost_p(rng.normal(0, 0.02, 11), 0.02) < 0.05 for _ in range(3000)])
    assert tost_power(0.02, 11, 0.02) == pytest.approx(found, abs=0.03)
    assert tost_power(0.02, 11, 0.02, true=0.02) <= 0.05
    assert tost_pairs_needed(5.0, 0.001) is None


@given(st.floats(0, 1), st.integers(1, 64))
def test_informative_groups_is_the_binomial_share(p: float, siblings: int) -> None:
    found = informative_groups([p], siblings)
    assert 0 <= found <= 1
    assert found == pytest.approx(1 - p**siblings - (1 - p) ** siblings)
    assert informative_groups([p], siblings + 1) >= found - 1e-12


def test_rates_spread_less_than_shares_and_give_the_right_informative_share() -> None:
    rng = np.random.default_rng(1)
    rates = rng.beta(0.5, 1.5, 3000)
    correct = [int(c) for c in rng.binomial(4, rates)]
    truth = informative_groups(list(rates), 16)
    assert informative_groups(list(beta_rates(correct, 4)), 16) == pytest.approx(truth, abs=0.02)
    assert informative_groups([c / 4 for c in correct], 16) < truth - 0.05
    assert beta_rates([0, 0], 4).max() == 0.0


def test_questions() -> None:
    assert 900 <= questions_needed(0.03, sd=0.335) <= 1100, "three points need about a thousand questions"
    assert questions_for_noise(0.5, 0.012) == pytest.approx(0.25 / 0.004**2, abs=1)
