"""Repetition, periods, confident runs and duplicates against plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.monitor import text


def grid(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    width = max(len(row) for row in rows)
    ids = np.array([[*row, *[-1] * (width - len(row))] for row in rows], dtype=np.int64)
    return ids, np.array([len(row) for row in rows])


def rep4(row: list[int]) -> float:
    grams = [tuple(row[k : k + 4]) for k in range(len(row) - 3)]
    return 1 - len(set(grams)) / len(grams)


def loops(row: list[int]) -> bool:
    return any(len(row) >= 8 * p and row[-8 * p :] == row[-p:] * 8 for p in range(1, 33))


rows = st.lists(st.lists(st.integers(0, 2), min_size=16, max_size=60), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_rep4_equals_counting_sets(rows: list[list[int]]) -> None:
    assert text.rep_n(*grid(rows), 4).tolist() == pytest.approx([rep4(row) for row in rows])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=9), st.lists(st.integers(0, 1), min_size=1, max_size=33), st.integers(6, 9))
def test_periodic_suffix_equals_slicing(head: list[int], period: list[int], times: int) -> None:
    row = head + period * times
    other = list(range(100, 120))
    assert text.periodic(*grid([row, other])).tolist() == [loops(row), False]


def test_period_of_32_counts_and_of_33_does_not() -> None:
    assert text.periodic(*grid([list(range(32)) * 8, [99, *list(range(32)) * 7]])).tolist() == [True, False]
    assert text.periodic(*grid([list(range(33)) * 8])).tolist() == [False]


def test_large_vocabulary_codes_do_not_overflow() -> None:
    row = [250_000 + k for k in range(40)]
    assert text.rep_n(*grid([row, [250_000] * 40]), 4).tolist() == pytest.approx([0.0, 1 - 1 / 37])


def test_packing_closes_holes() -> None:
    ids = np.array([[1, 9, 2, 9], [3, 4, 9, 9], [9, 9, 9, 9]])
    mask = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    packed, lengths = text.packed(ids, mask)
    assert packed.tolist() == [[1, 2], [3, 4], [-1, -1]]
    assert lengths.tolist() == [2, 2, 0]


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4))
def test_longest_run_equals_splitting(rows: list[list[bool]]) -> None:
    expected = max(max(map(len, "".join("x" if b else " " for b in row).split()), default=0) for row in rows)
    assert text.longest_run(np.array(rows)) == expected


def test_distinct_share_is_per_group() -> None:
    ids, _ = grid([[1, 2], [1, 2], [1], [1, 2]])
    assert text.distinct_share(ids, np.array([0, 0, 1, 1])) == pytest.approx((0.5 + 1.0) / 2)
