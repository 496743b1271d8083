"""Splits depend on content alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tasks.splits import content_id, digest, split_of, split_of_digest


def test_shares_are_80_10_10() -> None:
    shares = Counter(split_of(f"question {i}") for i in range(20_000))
    assert abs(shares["test"] / 20_000 - 0.1) < 0.01
    assert abs(shares["validation"] / 20_000 - 0.1) < 0.01


def test_the_assignment_never_changes() -> None:
    assert [split_of(x) for x in ("a", "b", "c", "8 +3 +5 -2 ?")] == PINNED
    assert content_id("8 +3 +5 -2 ?") == PINNED_ID


@given(st.text())
def test_digest_and_content_agree(content: str) -> None:
    assert split_of(content) == split_of_digest(digest(content))
    assert len(content_id(content)) == 16


PINNED = ["train", "train", "train", "train"]
PINNED_ID = "38a5956e96795c3c"
