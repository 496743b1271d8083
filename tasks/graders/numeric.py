"""Numbers as people write them, compared exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_PLAIN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?", re.ASCII)
_COMMAS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?", re.ASCII)
_MAX_CHARS = 400  # a longer "number" is a degenerate response; exact arithmetic on it would only cost time


def as_number(text: str) -> Fraction | None:
    """The value of a text that is one number, else None: `"$1,200.50"`, `"-3/4"`, `"12."`, `"1e3"`, `"50%"` -> 1/2."""
    word = text.strip().replace("\u2212", "-").replace("$", "").strip().rstrip(".")
    if len(word) > _MAX_CHARS:
        return None
    percent = word.endswith("%")
    word = word.removesuffix("%").strip()
    top, slash, bottom = word.partition("/")
    value = _decimal(top)
    if slash:
        divisor = _decimal(bottom)
        if value is None or not divisor:
            return None
        value = value / divisor
    if value is None:
        return None
    return value / 100 if percent else value


def numerically_equal(answer: str, gold: str, tolerance: float = 1e-5) -> bool:
    """Whether two texts are the same number: exactly for a whole gold, else up to `tolerance` relative to the gold.

    A percent sign counts as /100, but `50%` also equals a gold of `50` and `50` a gold of `50%`: sources disagree
    on whether the sign belongs to the answer. Text that is no number equals nothing.
    """
    left, right = as_number(answer), as_number(gold)
    if left is None or right is None:
        return False
    if _close(left, right, tolerance):
        return True
    by_percent = ("%" in answer) - ("%" in gold)
    if by_percent > 0:
        return _close(left * 100, right, tolerance)
    return by_percent < 0 and _close(left, right * 100, tolerance)


def _close(left: Fraction, right: Fraction, tolerance: float) -> bool:
    if left == right:
        return True
    return right.denominator != 1 and abs(left - right) <= Fraction(tolerance) * abs(right)


def _decimal(text: str) -> Fraction | None:
    word = re.sub(r"(?<=^[-+])\s+", "", text.strip())
    if _COMMAS.fullmatch(word):
        word = word.replace(",", "")
    return Fraction(word) if _PLAIN.fullmatch(word) else None
