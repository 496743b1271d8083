"""Text <-> tokens, as far as rollouts need it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from harness.core.types import Message


class Codec(Protocol):
    """How messages become prompt tokens and response tokens become text."""

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt tokens after the chat template."""

    def encode_reply(self, messages: Sequence[Message], reply: Sequence[Message], last: int) -> tuple[int, ...]:
        """Tokens between two turns of the policy, the first of which ended with the token `last`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Response text without special tokens."""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model sees it."""


def token_ends(
    ids: Sequence[int], text: str, piece: Callable[[int], str], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """Character at which each token ends in `text`.

    Tokens whose texts simply join (with or without a space) are summed; otherwise prefixes are decoded.
    """
    pieces = [piece(i) for i in ids]
    if "".join(pieces) == text:
        return list(accumulate(len(p) for p in pieces))
    if " ".join(p for p in pieces if p) == text:
        ends = list(accumulate(len(p) + 1 if p else 0 for p in pieces))
        return [max(0, e - 1) for e in ends]
    return [len(decode(ids[: i + 1])) for i in range(len(ids))]


def last_token(ends: Sequence[int], span: tuple[int, int]) -> int | None:
    """Index of the token in which a character span ends; None where it lies outside the response."""
    index = bisect_left(ends, span[1])
    return index if index < len(ends) and span[1] > span[0] else None
