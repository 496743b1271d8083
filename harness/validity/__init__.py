"""Is a set-up fit to be compared? One pure function per check, over plain measurements; a finding each.

Nothing that an algorithm causes after its first update is judged here: that is an outcome and always counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.core.results import Finding, Validity

ORDER: tuple[Validity, ...] = ("PASS", "WARN", "INVALID")


def worst(findings: Iterable[Finding]) -> Validity:
    """The most severe level among findings; PASS where there is none."""
    return max((f.level for f in findings), key=ORDER.index, default="PASS")


def reasons(findings: Iterable[Finding]) -> tuple[str, ...]:
    """One line per finding that is not PASS, INVALID ones first."""
    told = sorted((f for f in findings if f.level != "PASS"), key=lambda f: -ORDER.index(f.level))
    return tuple(f.reason for f in told)
