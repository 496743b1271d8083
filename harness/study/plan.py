"""How many seeds, questions and informative groups a study needs, what it costs, and whether it can succeed at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from harness.core.errors import UsageError
from harness.stats.paired import minimal_detectable_effect, pairs_needed, sd_upper
from harness.stats.power import informative_groups, questions_for_noise, questions_needed, tost_pairs_needed

MOST_SEEDS = 100  # more pairs than this is no plan
LEAST_INFORMATIVE = 0.05  # share of groups with a signal below which nearly all sampling is wasted


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What is known before the study: measured in a pilot, or stated."""

    gain: float  # difference that should be seen
    comparisons: int  # with the reference: the correction family
    sd: float  # over seeds, of the paired difference
    pairs: int | None  # pairs the SD was estimated from; None where it was stated
    pass_rates: Sequence[float]  # of the base model, one per question or one for all
    tokens: int | None  # sampled per run
    speed: float | None  # sampled tokens per second of one run
    source: str  # where sd and pass rates come from


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The plan."""

    seeds: int | None  # for 80 % power at the first step of the correction, at the SD as given
    seeds_upper: int | None  # at the upper 80 % bound of an estimated SD
    seeds_equivalence: int | None
    detectable: dict[int, float]  # seeds -> smallest detectable difference
    base: float  # mean pass rate
    informative: dict[int, float]  # siblings -> share of groups with a signal
    questions: int  # so that evaluation noise stays under a third of the seed SD
    questions_pair: int  # for a paired comparison of two fixed policies
    tokens: int | None  # of the whole study
    hours: float | None
    hopeless: tuple[str, ...]  # reasons why it cannot succeed
    source: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def plan(basis: Basis, siblings: Sequence[int]) -> Needs:
    """Needs of a study; `hopeless` names what more seeds cannot repair."""
    _check(basis, siblings)
    level = 0.05 / max(1, basis.comparisons)
    bound = None if basis.pairs is None else sd_upper(basis.sd, basis.pairs)
    seeds = pairs_needed(basis.sd, basis.gain, level)
    upper = seeds if bound is None else pairs_needed(bound, basis.gain, level)
    rates = np.asarray(basis.pass_rates, dtype=float)
    base = float(rates.mean())
    runs = (upper or seeds or 0) * (basis.comparisons + 1)
    tokens = None if basis.tokens is None or not runs else basis.tokens * runs
    informative = {g: informative_groups(list(rates), g) for g in siblings}
    later = min(0.999, base + basis.gain)
    return Needs(
        seeds=seeds, seeds_upper=upper, seeds_equivalence=tost_pairs_needed(basis.sd, basis.gain),
        detectable={n: float(minimal_detectable_effect(basis.sd, n, level) or 0.0) for n in (3, 5, 8, 10, 20)},
        base=base, informative=informative,
        questions=questions_for_noise(later, max(basis.sd, 1e-4)),
        questions_pair=questions_needed(basis.gain), tokens=tokens,
        hours=None if tokens is None or not basis.speed else tokens / basis.speed / 3600,
        hopeless=tuple(_hopeless(basis, seeds, base, informative)), source=basis.source,
    )  # fmt: skip


def _check(basis: Basis, siblings: Sequence[int]) -> None:
    if not 0 < basis.gain < 1:
        raise UsageError(f"--gain {basis.gain:g}", "a difference of two scores in [0, 1] is meant", "e.g. --gain 0.03")
    if basis.sd < 0:
        raise UsageError(f"--sd {basis.sd:g}", "a standard deviation is not negative", "e.g. --sd 0.03")
    if any(not 0 <= p <= 1 for p in basis.pass_rates):
        raise UsageError("--base", "a pass rate lies in [0, 1]", "e.g. --base 0.2")
    if not siblings or min(siblings) < 1:
        raise UsageError(f"--siblings {list(siblings)}", "a group has one response or more", "e.g. --siblings 8,16")


def _hopeless(basis: Basis, seeds: int | None, base: float, informative: dict[int, float]) -> list[str]:
    found = []
    if seeds is None or seeds > MOST_SEEDS:
        count = "more than 10,000" if seeds is None else str(seeds)
        found.append(
            f"a difference of {basis.gain:g} at an SD of {basis.sd:.3g} needs {count} seed pairs per arm: "
            "ask for a larger difference, or reduce the spread (longer budget, larger batch)"
        )
    if base + basis.gain > 1:
        found.append(f"the base model passes {base:.0%}: there is no room for a gain of {basis.gain:g}")
    best = max(informative.values())
    if best < LEAST_INFORMATIVE:
        side = "right" if base > 0.5 else "wrong"
        found.append(
            f"even with {max(informative)} siblings only {best:.1%} of the groups have both a right and a wrong "
            f"response (nearly all are {side}): choose {'harder' if base > 0.5 else 'easier'} questions or "
            f"{'another' if base > 0.5 else 'a stronger'} base model"
        )
    return found
