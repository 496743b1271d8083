"""Areas, drawdowns, tail risk and compute fits with known truth."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats.curve import Fit, area, asymptote, dispersion, drawdown, fit_sigmoid, tail_risk


def test_area_of_a_straight_line() -> None:
    x = list(np.linspace(0, 100, 21))
    assert area(x, x, 10, 100, log=False) == pytest.approx(55)
    assert area(x, x, 10, 100) == pytest.approx(90 / np.log(10), rel=0.02)  # integral of e^u du / range
    assert area([0, 2, 8], [0.9, 0.2, 0.6], 2, 8) == pytest.approx(0.4), "a point at 0 is not on a log axis"
    assert area(x, [0.4] * 21, 5, 50) == pytest.approx(0.4)
    assert area(x, x, 10, 200) is None, "a curve that ends early has no area over the whole range"
    assert area([], [], 1, 2) is None


def test_risk_of_a_curve_and_of_runs() -> None:
    assert drawdown([0.1, 0.8, 0.3, 0.9, 0.7]) == pytest.approx(0.5)
    assert drawdown([None]) is None
    assert dispersion([0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.0)
    assert tail_risk([0.9, 0.8, 0.7, 0.1]) == pytest.approx(0.1)
    assert tail_risk([0.9, 0.8, 0.7, 0.6, 0.1]) == pytest.approx(0.35), "a quarter of five is two runs"


def curve(top: float, middle: float, seed: int, points: int = 40) -> tuple[np.ndarray, np.ndarray]:
    c = np.linspace(0, 1e6, points + 1)
    clean = np.where(c > 0, 0.2 + (top - 0.2) / (1 + (middle / np.maximum(c, 1)) ** 2.0), 0.2)
    return c, clean + np.random.default_rng(seed).normal(0, 0.005, points + 1) * (c > 0)


def test_a_fit_finds_the_asymptote_and_predicts_the_held_out_end() -> None:
    fits = [fit_sigmoid(*map(list, curve(0.8, 1.5e5, s))) for s in range(5)]
    kept = [f for f in fits if f is not None]
    assert len(kept) == 5
    found = asymptote(kept)
    assert found.value == pytest.approx(0.8, abs=0.01)
    assert found.low is not None
    assert all(f.error is not None and f.error < 0.03 for f in kept)
    assert np.mean([f.midpoint for f in kept]) == pytest.approx(1.5e5, rel=0.05)


def test_an_asymptote_that_was_not_approached_is_refused() -> None:
    fits = [f for s in range(5) if (f := fit_sigmoid(*map(list, curve(0.9, 2e6, s)))) is not None]
    assert asymptote(fits).value is None
    assert "refused" in str(asymptote(fits).note)


def test_refusals_name_their_reason() -> None:
    def fit(top: float, middle: float) -> Fit:
        return Fit(start=0.2, asymptote=top, exponent=1.0, midpoint=middle, largest=10.0, error=None)

    assert "under twice the midpoint" in str(asymptote([fit(0.8, 6.0)] * 4).note)
    assert "wide" in str(asymptote([fit(0.7, 1.0), fit(0.8, 1.0), fit(0.9, 1.0)]).note)
    assert "no interval" in str(asymptote([fit(0.8, 1.0)] * 2).note)
    assert fit_sigmoid([1.0, 2.0], [0.1, 0.2]) is None
