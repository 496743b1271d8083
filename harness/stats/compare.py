"""The label of a comparison, by rule, over a declared family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.stats.paired import (
    Paired,
    bonferroni_t,
    flip_max_t,
    holm,
    max_t_p,
    minimal_detectable_effect,
    paired_difference,
    pairs_needed,
    sd_upper,
)
from harness.stats.power import tost_pairs_needed

Label = Literal["A>B", "B>A", "equivalent", "inconclusive", "inconclusive-underpowered", "measurement-limited"]
MAX_T, HOLM_T = "max-|t| over within-seed permutations", "paired t, Holm"  # the two tests a study can declare
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
    p_exchange: float | None  # max-|t| over label exchanges inside the pairs; holds when other arms differ
    simultaneous: tuple[float, float] | None  # interval that holds for the whole family at once
    p_tost_adjusted: float | None
    family: int  # number of comparisons corrected together
    mde: float | None  # at the family's first step
    seeds_needed: int | None  # for an MDE of delta, at the observed SD
    seeds_needed_upper: int | None  # at the upper 80 % bound of the SD
    seeds_needed_tost: int | None  # to show equivalence within +-delta if there is no difference
    eval_noise: float | None  # evaluation SE / SD of the paired difference
    alpha: float  # family-wise level
    label: Label
    why: str


def compare_family(
    pairs: Sequence[tuple[Arm, Arm]],
    delta: float,
    eval_se: Mapping[tuple[str, str], float] | None = None,
    alpha: float = 0.05,
) -> list[Comparison]:
    """Compares arms over the seeds both have; the correction family is everything passed in.

    The declared test decides: from ten common seeds the max-|t| over within-seed permutations of the arm labels, below
    it paired t with Holm. Permuting all labels presumes that all arms are equal; where one differs, the others' false
    wins rise to 10 % and more (simulated in tests/stats). So a winner also needs the max-|t| over exchanges of the two
    labels inside each pair, which holds whatever the other arms do.

    `eval_se` is the evaluation noise (standard error) of one run pair's difference.
    """
    seeds = [tuple(sorted(set(a.scores) & set(b.scores))) for a, b in pairs]
    found = [
        paired_difference([a.scores[s] for s in common], [b.scores[s] for s in common], delta)
        for (a, b), common in zip(pairs, seeds, strict=True)
    ]
    adjusted = _adjust(pairs, seeds, found, alpha)
    equal = _holm_known([d.p_tost for d in found])
    family = sum(d.p_t is not None for d in found)
    return [
        _label(
            a, b, seeds[i], found[i], adjusted[i], equal[i], family,
            _noise(found[i], (eval_se or {}).get((a.name, b.name))), delta, alpha,
        )
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adjusted:
    """One comparison's test, corrected for the family."""

    test: str
    p: float | None
    p_exchange: float | None
    critical: float | None  # |t| that the simultaneous interval uses


def _adjust(
    pairs: Sequence[tuple[Arm, Arm]], seeds: list[tuple[int, ...]], found: list[Paired], alpha: float
) -> list[_Adjusted]:
    """max-|t| where all arms share at least ten seeds, else paired t with Holm."""
    arms = {arm.name: arm for pair in pairs for arm in pair}
    common = sorted(set.intersection(*(set(s) for s in seeds))) if seeds else []
    if len(common) >= MAX_T_FROM and all(len(s) == len(common) for s in seeds):
        names = list(arms)
        scores = np.array([[arms[name].scores[s] for name in names] for s in common])
        columns = [(names.index(a.name), names.index(b.name)) for a, b in pairs]
        differences = np.stack([scores[:, i] - scores[:, j] for i, j in columns], axis=1)
        exchanged, critical = flip_max_t(differences, 1 - alpha)
        return [
            _Adjusted(test=MAX_T, p=p, p_exchange=q, critical=critical)
            for p, q in zip(max_t_p(scores, columns), exchanged, strict=True)
        ]
    family = max(1, sum(d.p_t is not None for d in found))
    return [
        _Adjusted(test=HOLM_T, p=p, p_exchange=None, critical=bonferroni_t(d.n, family, alpha) if d.sd else None)
        for p, d in zip(_holm_known([d.p_t for d in found]), found, strict=True)
    ]


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
    a: Arm, b: Arm, seeds: tuple[int, ...], d: Paired, adjusted: _Adjusted, p_tost: float | None, family: int,
    noise: float | None, delta: float, alpha: float,
) -> Comparison:  # fmt: skip
    step = alpha / max(1, family)
    mde = minimal_detectable_effect(d.sd, d.n, step) if d.sd is not None else None
    label, why = _decide(a, b, d, adjusted, p_tost, mde, noise, delta, alpha)
    both = None
    if adjusted.critical is not None and d.sd is not None and d.value is not None:
        half = adjusted.critical * d.sd / float(np.sqrt(d.n))
        both = (d.value - half, d.value + half) if np.isfinite(half) else None
    return Comparison(
        a=a.name, b=b.name, seeds=seeds, difference=d, test=adjusted.test, p_adjusted=adjusted.p,
        p_exchange=adjusted.p_exchange, simultaneous=both, p_tost_adjusted=p_tost, family=family, mde=mde,
        seeds_needed=None if d.sd is None else pairs_needed(d.sd, delta, step),
        seeds_needed_upper=None if d.sd is None else pairs_needed(sd_upper(d.sd, d.n), delta, step),
        seeds_needed_tost=None if d.sd is None else tost_pairs_needed(d.sd, delta),
        eval_noise=noise, alpha=alpha, label=label, why=why,
    )  # fmt: skip


def _decide(
    a: Arm, b: Arm, d: Paired, adjusted: _Adjusted, p_tost: float | None, mde: float | None, noise: float | None,
    delta: float, alpha: float,
) -> tuple[Label, str]:  # fmt: skip
    p, exchange = adjusted.p, adjusted.p_exchange
    if p is None or d.value is None or mde is None:
        return "inconclusive-underpowered", f"{d.note}: nothing can be said from fewer than three paired seeds"
    noisy = noise is not None and noise > NOISE_LIMIT
    if p < alpha and (exchange is None or exchange < alpha) and not _drowned(d, noise):
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
    said = f"adjusted p = {p:.3g}" + (
        f", exchanging labels inside pairs {exchange:.3g}" if p < alpha and exchange else ""
    )
    return "inconclusive", f"{said}, and equivalence within +-{delta:g} is not shown"


def _drowned(d: Paired, noise: float | None) -> bool:
    """True where a noisy evaluation alone could explain the difference: its SE added in quadrature covers 0.

    Questions are shared by the seeds, so the noise does not shrink with n.
    """
    if noise is None or noise <= NOISE_LIMIT or d.sd is None or d.low is None or d.value is None:
        return False
    half = d.value - d.low
    question = 2.0 * noise * d.sd if d.sd > 0 else 0.0
    return abs(d.value) <= float(np.hypot(half, question))
