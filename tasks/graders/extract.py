"""Reading an answer out of a response text."""

from __future__ import annotations

import re

# A sign belongs to the number where it touches it and no operand touches the sign: "5-3" and "5 - 3" hold 5 and 3.
_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9])(?<!\d\.)                 # not inside a word or a longer number
    (?:(?<![\d)%}])[-+\u2212])?\$?              # sign, dollar
    (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)            # 1,234,567 or 1234567
    (?:\.\d+)?
    (?:[eE][-+]?\d+(?!\w))?                     # 1e-3
    (?:\s?/\s?\d+(?:\.\d+)?(?![\d/]))?          # 3/4
    \s?%?
    |(?<![\w.])[-+\u2212]?\$?\.\d+\s?%?         # .5
    """,
    re.VERBOSE | re.ASCII,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+([^\s${}]+)")
_LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def _fraction(found: re.Match[str]) -> str:
    whole = f"{found[1]} " if found[1] else ""
    return f"{whole}{found[2]}/{found[3]} "


def numbers(text: str) -> list[str]:
    """All numbers of a text as written, in order: signs, $, commas, decimals, exponents, a/b fractions, percent."""
    plain = _LATEX_FRACTION.sub(_fraction, text.replace(r"\$", "$").replace(r"\%", "%").replace(r"\,", ""))
    return [found[0].strip() for found in _NUMBER.finditer(plain)]


def last_number(text: str) -> str | None:
    """The last number of a text as written, or None: `"so 3 + 4 = 7."` -> `"7"`."""
    found = numbers(text)
    return found[-1] if found else None


def tagged(text: str, tag: str = "answer") -> str | None:
    """What the last complete `<tag>...</tag>` holds, stripped, or None."""
    close = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, close) if close >= 0 else -1
    return text[start + len(tag) + 2 : close].strip() if start >= 0 else None


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, braces balanced, stripped, or None; `\boxed 5` holds 5."""
    found = list(_BOX.finditer(text))
    if not found:
        return None
    last = found[-1]
    if last[1] is not None:
        return last[1]
    depth = 1
    for position in range(last.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[last.end() : position].strip()
    return None
