"""Mathematical answers compared by math-verify. Loaded by a worker process, so nothing of ours is imported here.

math-verify has time limits by SIGALRM, for main threads only; they are off, and a worker that hangs is killed.
"""

from __future__ import annotations

import cmath
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypedDict

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr

for _name in ("math_verify", "math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

Outcome = Literal["right", "wrong", "no answer", "unparsable answer", "unparsable gold"]
NEAR = 1e-3  # of the larger number: far beyond math-verify's own rounding to 6 digits


class Verdict(TypedDict):
    """What is known about one response."""

    outcome: Outcome
    extracted: str | None  # the part of the response that was read: as written, or as math-verify normalises it


_ONE_BOX = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)  # all that is sent of a response with a box
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_READ = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def _parsed(text: str) -> tuple[list[Any], str | None]:
    """(expressions, the text they were read from); no expression where a candidate could not be parsed.

    An escaped dollar is a currency sign, which math-verify would take for the beginning of a formula.
    """
    found = parse(text.replace(r"\$", ""), extraction_config=_READ, fallback_mode="first_match", parsing_timeout=None)
    written = next((item for item in found if isinstance(item, str)), None)
    return ([] if all(isinstance(item, str) for item in found) else list(found)), written


@lru_cache(maxsize=4096)
def gold_of(gold: str) -> tuple[Any, ...]:
    """The expressions of a stored answer, with or without its own delimiters; empty where it cannot be parsed."""
    for text in (gold,) if "$" in gold or "\\boxed" in gold else (f"\\boxed{{{gold}}}", gold):
        expressions, _ = _parsed(text)
        if expressions:
            return tuple(expressions)
    return ()


def clearly_different(expected: tuple[Any, ...], answer: list[Any]) -> bool:
    """Whether both are expressions whose values differ by more than rounding and a percent sign explain.

    Variables get fixed values. Saves the symbolic simplification of a difference that is not 0, which is most of the
    time that wrong answers cost.
    """
    left, right = _value(expected), _value(answer)
    if left is None or right is None:
        return False
    return not any(abs(factor * left - right) <= NEAR * max(1.0, abs(right)) for factor in (1, 100, 0.01))


def _value(expressions: Sequence[Any]) -> complex | None:
    """The value of the one expression there is, or None (sets, intervals, matrices, equations, several readings)."""
    found = [e for e in expressions if not isinstance(e, str)]
    if len(found) != 1 or not isinstance(found[0], Expr):
        return None
    try:
        numbers = {symbol: 1.1 + sum(map(ord, symbol.name)) % 97 / 97 for symbol in found[0].free_symbols}
        value = complex(found[0].xreplace(numbers).evalf(15))
    except Exception:  # sympy raises whatever its parts raise; math-verify then decides alone
        return None
    return value if cmath.isfinite(value) else None


@lru_cache(maxsize=4096)
def verdict(gold: str, response: str) -> Verdict:
    """The last boxed expression, final answer or number of a response against the stored answer.

    Siblings often answer the same, so verdicts are kept.
    """
    return _at_sight(gold, response) or by_parsing(gold, response)


def _at_sight(gold: str, response: str) -> Verdict | None:
    """The verdict on a boxed answer where both are whole numbers, or written alike; None: it takes a parser."""
    found = _ONE_BOX.fullmatch(response)
    if found is None or "\\boxed" in found[1]:
        return None
    answer, expected = found[1].strip(), gold.strip()
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(expected):
        return {"outcome": "right" if int(answer) == int(expected) else "wrong", "extracted": answer}
    if answer and answer == expected and gold_of(gold):
        return {"outcome": "right", "extracted": answer}
    return None


def by_parsing(gold: str, response: str) -> Verdict:
    """The verdict by math-verify alone."""
    expected = gold_of(gold)
    if not expected:
        return {"outcome": "unparsable gold", "extracted": None}
    answer, written = _parsed(response)
    if written is None:
        return {"outcome": "no answer", "extracted": None}
    if not answer:
        return {"outcome": "unparsable answer", "extracted": written}
    right = not clearly_different(expected, answer) and verify(list(expected), answer, timeout_seconds=None)
    return {"outcome": "right" if right else "wrong", "extracted": written}
