"""How numbers are written, once for every format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINUS = "\u2212"


def _sign(text: str) -> str:
    return text.replace("-", MINUS)


def score(value: float | None) -> str:
    """A score in [0, 1]."""
    return "n/a" if value is None else _sign(f"{value:.3f}")


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "n/a" if value is None else _sign(f"{value:+.3f}")


def count(value: float | None) -> str:
    """Tokens, steps: three significant digits with k, M, G."""
    if value is None:
        return "n/a"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return _sign(f"{value / unit:.3g}{name}" if abs(value) / unit < 999.5 else f"{value / unit:.0f}{name}")
    return _sign(f"{value:.0f}")


def exact(value: float | None) -> str:
    """An integer with thousands separators."""
    return "n/a" if value is None else f"{value:,.0f}"


def fraction(value: float | None) -> str:
    """A share as a percentage: two significant digits, since clip fractions span four orders of magnitude."""
    if value is None:
        return "n/a"
    percent = 100 * value
    if percent == 0:
        return "0 %"
    return _sign(f"{percent:.2g} %" if abs(percent) < 10 else f"{percent:.0f} %")


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "n/a"
    return _sign(f"{value:.3g}")


def seconds(value: float | None) -> str:
    """Wall-clock time."""
    if value is None:
        return "n/a"
    if value < 120:
        return _sign(f"{value:.0f} s" if abs(value) >= 10 else f"{value:.1f} s")
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def memory(value: float | None) -> str:
    """MiB."""
    if value is None:
        return "n/a"
    return f"{value:.0f} MiB" if value < 10_240 else f"{value / 1024:.1f} GiB"


def p_value(value: float | None) -> str:
    """Two or three decimals, `< 0.001` below."""
    if value is None:
        return "n/a"
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


FORMATS = {
    "score": score,
    "signed": signed,
    "count": count,
    "fraction": fraction,
    "number": number,
    "seconds": seconds,
    "memory": memory,
}


def interval(estimate: Mapping[str, Any] | None, kind: str = "score") -> str:
    """`[low, high]`, or why there is none."""
    if estimate is None or estimate.get("value") is None:
        return ""
    form = FORMATS[kind]
    if estimate.get("low") is None:
        return f"(n={estimate['n']}, no interval)" if estimate["n"] < 3 else f"(n={estimate['n']}, a run collapsed)"
    return f"[{form(estimate['low'])}, {form(estimate['high'])}]"


def value_interval(estimate: Mapping[str, Any] | None, kind: str = "score") -> str:
    """`0.612 [0.580, 0.644]`."""
    if estimate is None or estimate.get("value") is None:
        return "n/a"
    return f"{FORMATS[kind](estimate['value'])} {interval(estimate, kind)}"


def test_words(comparison: Mapping[str, Any]) -> str:
    """`Holm p = 0.020`."""
    name = "Holm" if "Holm" in comparison["test"] else "max-|t|"
    p = p_value(comparison["p_adjusted"])
    return f"{name} p {p}" if p.startswith("<") else f"{name} p = {p}"


LABELS = {"inconclusive-underpowered": "underpowered"}


def label_words(comparison: Mapping[str, Any]) -> str:
    """`DAPO > GRPO`, or the label itself."""
    if comparison["label"] == "A>B":
        return f"{comparison['a']} > {comparison['b']}"
    if comparison["label"] == "B>A":
        return f"{comparison['b']} > {comparison['a']}"
    return LABELS.get(comparison["label"], str(comparison["label"]))


def threshold_words(cell: Mapping[str, Any] | None) -> str:
    """`212k (3/3)`, or `> 400k (0/3)` where half or more runs never got there."""
    if cell is None:
        return "n/a"
    reached = f"({cell['reached']}/{len(cell['each'])})"
    if cell["median"] is None:
        return f"> {count(cell['followed'])} {reached}"
    return f"{count(cell['median'])} {reached}"
