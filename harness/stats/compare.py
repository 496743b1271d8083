"""The label of a comparison, by rule, over a declared family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.stats.paired import (
    Paired,
    holm,
    max_t_p,
    minimal_detectable_effect,
    paired_difference,
    pairs_needed,
    sd_upper,
)

Label = Literal["A>B", "B>A", "equivalent", "inconclusive", "inconclusive-underpowered", "measurement-limited"]
MAX_T_FROM = 10  # pairs from which the max-|t| permutation decides instead of Holm-corrected t tests
COLLAPSE_T_FROM = 20  # with a collapse in an arm, no winner from a t interval below this many pairs
NOISE_LIMIT = 1 / 3  # evaluation SE / SD of the paired difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What a comparison needs to know about one arm: scores by seed pair, and whether a run of it collapsed."""

    name: str
    scores: Mapping[int, float]
    collapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A minus B with the family-adjusted test that decides its label."""

    a: str
    b: str
    seeds: tuple[int, ...]
    difference: Paired
    test: str
    p_adjusted: float | None
    p_tost_adjusted: float | None
    family: int  # number of comparisons corrected together
    mde: float | None  # at the family's first step
    seeds_needed: int | None  # for an MDE of delta, at the observed SD
    seeds_needed_upper: int | None  # at the upper 80 % bound of the SD
    eval_noise: float | None  # evaluation SE / SD of the paired difference
    label: Label
    why: str


def compare_family(
    pairs: Sequence[tuple[Arm, Arm]],
    delta: float,
    eval_se: Mapping[tuple[str, str], float] | None = None,
    alpha: float = 0.05,
) -> list[Comparison]:
    """Compares arms over the seeds both have; the correction family is everything passed in.

    `eval_se` is the evaluation noise (standard error) of one run pair's difference.
    """
    seeds = [tuple(sorted(set(a.scores) & set(b.scores))) for a, b in pairs]
    found = [
        paired_difference([a.scores[s] for s in common], [b.scores[s] for s in common], delta)
        for (a, b), common in zip(pairs, seeds, strict=True)
    ]
    tests, adjusted = _adjust(pairs, seeds, found)
    equal = _holm_known([d.p_tost for d in found])
    family = sum(d.p_t is not None for d in found)
    results = []
    for index, (a, b) in enumerate(pairs):
        noise = _noise(found[index], (eval_se or {}).get((a.name, b.name)))
        results.append(
            _label(
                a,
                b,
                seeds[index],
                found[index],
                tests[index],
                adjusted[index],
                equal[index],
                family,
                noise,
                delta,
                alpha,
            )
        )
    return results


def _adjust(
    pairs: Sequence[tuple[Arm, Arm]], seeds: list[tuple[int, ...]], found: list[Paired]
) -> tuple[list[str], list[float | None]]:
    """max-|t| where all arms share at least ten seeds, else paired t with Holm."""
    arms = {arm.name: arm for pair in pairs for arm in pair}
    common = sorted(set.intersection(*(set(s) for s in seeds))) if seeds else []
    if len(common) >= MAX_T_FROM and all(len(s) == len(common) for s in seeds):
        names = list(arms)
        scores = np.array([[arms[name].scores[s] for name in names] for s in common])
        columns = [(names.index(a.name), names.index(b.name)) for a, b in pairs]
        p: list[float | None] = [*max_t_p(scores, columns)]
        return ["max-|t| over within-seed permutations"] * len(pairs), p
    return ["paired t, Holm"] * len(pairs), _holm_known([d.p_t for d in found])


def _holm_known(p: Sequence[float | None]) -> list[float | None]:
    known = [i for i, x in enumerate(p) if x is not None]
    adjusted: list[float | None] = [None] * len(p)
    for index, value in zip(known, holm([x for x in p if x is not None]), strict=True):
        adjusted[index] = value
    return adjusted


def _noise(difference: Paired, se: float | None) -> float | None:
    if se is None or difference.sd is None:
        return None
    return float(se / difference.sd) if difference.sd > 0 else float("inf")


def _label(
    a: Arm, b: Arm, seeds: tuple[int, ...], d: Paired, test: str, p: float | None, p_tost: float | None,
    family: int, noise: float | None, delta: float, alpha: float,
) -> Comparison:  # fmt: skip
    step = alpha / max(1, family)
    mde = minimal_detectable_effect(d.sd, d.n, step) if d.sd is not None else None
    label, why = _decide(a, b, d, p, p_tost, mde, noise, delta, alpha)
    needed = pairs_needed(d.sd, delta, step) if d.sd is not None else None
    upper = pairs_needed(sd_upper(d.sd, d.n), delta, step) if d.sd is not None else None
    return Comparison(
        a=a.name, b=b.name, seeds=seeds, difference=d, test=test, p_adjusted=p, p_tost_adjusted=p_tost, family=family,
        mde=mde, seeds_needed=needed, seeds_needed_upper=upper, eval_noise=noise, label=label, why=why,
    )  # fmt: skip


def _decide(
    a: Arm, b: Arm, d: Paired, p: float | None, p_tost: float | None, mde: float | None, noise: float | None,
    delta: float, alpha: float,
) -> tuple[Label, str]:  # fmt: skip
    if p is None or d.value is None or mde is None:
        return "inconclusive-underpowered", f"{d.note}: nothing can be said from fewer than three paired seeds"
    noisy = noise is not None and noise > NOISE_LIMIT
    if p < alpha and not _drowned(d, noise):
        collapse = a.collapsed or b.collapsed
        if collapse and d.n < COLLAPSE_T_FROM:
            return "inconclusive", f"a run collapsed, so the t interval under-covers with n={d.n} (< {COLLAPSE_T_FROM})"
        return ("A>B" if d.value > 0 else "B>A"), f"adjusted p = {p:.3g} < {alpha}"
    if noisy:
        return "measurement-limited", f"evaluation noise is {noise:.2f} of the SD of the difference (limit 1/3)"
    if p_tost is not None and p_tost < alpha:
        return "equivalent", f"TOST p = {p_tost:.3g}: the difference lies within +-{delta:g}"
    if mde > delta:
        return "inconclusive-underpowered", f"the smallest detectable difference is {mde:.3f} > {delta:g}"
    return "inconclusive", f"adjusted p = {p:.3g}, and equivalence within +-{delta:g} is not shown"


def _drowned(d: Paired, noise: float | None) -> bool:
    """True where a noisy evaluation alone could explain the difference: its SE added in quadrature covers 0.

    Questions are shared by the seeds, so the noise does not shrink with n.
    """
    if noise is None or noise <= NOISE_LIMIT or d.sd is None or d.low is None or d.value is None:
        return False
    half = d.value - d.low
    question = 2.0 * noise * d.sd if d.sd > 0 else 0.0
    return abs(d.value) <= float(np.hypot(half, question))
