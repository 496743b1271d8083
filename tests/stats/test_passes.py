"""pass@k and informative groups against brute force and against the formula in the limit."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.passes import informative, over_questions, pass_at


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_both_are_averages_over_all_subsets(case: tuple[int, int, int]) -> None:
    n, c, k = case
    groups = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at(k, n, c) == pytest.approx(sum(any(g) for g in groups) / len(groups))
    assert informative(k, n, c) == pytest.approx(sum(any(g) and not all(g) for g in groups) / len(groups))


def test_known_values() -> None:
    assert pass_at(1, 8, 2) == 0.25
    assert informative(16, 8, 4) == pytest.approx(1 - 2 * 0.5**16)  # more than were sampled: the formula
    assert informative(4, 4000, 1000) == pytest.approx(1 - 0.25**4 - 0.75**4, abs=1e-3)
    assert informative(8, 8, 8) == informative(64, 8, 0) == 0.0
    with pytest.raises(ValueError, match="pass@9 of 8"):
        pass_at(9, 8, 1)


def test_the_interval_is_over_questions() -> None:
    found = over_questions([0.0, 0.5, 1.0, 0.5], "pass@1")
    assert (found.value, found.n) == (0.5, 4)
    assert found.low is not None
    assert 0.0 <= found.low < 0.5
    assert over_questions([1.0, 1.0], "pass@1").low is None


def test_questions_that_are_all_alike_still_leave_room() -> None:
    """A t interval would be a point: 0 of 30 questions does not show that the model never solves one."""
    found = over_questions([0.0] * 30, "avg@4")
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.0799, abs=2e-3)
    assert over_questions([1.0] * 30, "avg@4").low == pytest.approx(1 - 0.0799, abs=2e-3)
