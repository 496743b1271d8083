"""Exact match of short texts after a conservative normalisation."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed, one pair of quotes and a trailing period taken off."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    plain = plain.removesuffix(".").rstrip()
    if len(plain) >= 2 and plain[0] == plain[-1] and plain[0] in "\"'`":
        plain = plain[1:-1].strip()
    return plain


def exactly_equal(answer: str, gold: str) -> bool:
    """Whether two texts are equal after `normalise`."""
    return normalise(answer) == normalise(gold)
