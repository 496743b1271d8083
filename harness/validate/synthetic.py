"""All families of synthetic curves through the detectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from harness.validate import family_a, family_b, family_c
from harness.validate.curves import Curve
from harness.validate.score import Judged, judge, summary
from harness.validate.targets import TYPES

FAULTS = 60  # per type and family
HEALTHY = 160  # runs per family, of 400 steps on average
SOLVED = 40
FAMILIES = {"a": family_a.curve, "b": family_b.curve, "c": family_c.curve}


def curves(faults: int = FAULTS, healthy: int = HEALTHY) -> Iterator[tuple[str, Curve]]:
    """(family, curve): healthy runs, runs that solve their task, and every type of fault."""
    for name, make in FAMILIES.items():
        yield from ((name, make(seed, None)) for seed in range(healthy))
        yield from ((name, make(seed, kind)) for kind in TYPES for seed in range(faults))
    yield from (("a", family_a.solved(seed)) for seed in range(min(SOLVED, healthy)))


def run_synthetic(
    faults: int = FAULTS, healthy: int = HEALTHY, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Summaries by family; `tell` gets a line of progress now and then."""
    total = len(FAMILIES) * (healthy + len(TYPES) * faults) + min(SOLVED, healthy)
    found: dict[str, list[Judged]] = {name: [] for name in FAMILIES}
    start = time.monotonic()
    told = start
    for done, (family, curve) in enumerate(curves(faults, healthy), start=1):
        found[family].append(judge(curve))
        now = time.monotonic()
        if now - told > 5 or done == total:
            told = now
            left = (now - start) / done * (total - done)
            tell(f"synthetic curves: {done}/{total}, about {left:.0f} s left")
    return {name: summary(judged) for name, judged in found.items()}
