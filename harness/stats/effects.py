"""Designed experiments: effects of factors by least squares, exact tests of collapse, Shapley values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb, factorial
from typing import Any

import numpy as np
from scipy import stats

from harness.stats.estimate import Estimate, mean_t
from harness.stats.paired import holm

Setting = Mapping[str, str]  # factor -> level


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One contrast of the model: a level against its factor's reference, or how two such contrasts interact."""

    factors: tuple[str, ...]  # one for a main effect, two for an interaction
    levels: tuple[str, ...]  # one per factor
    value: float
    low: float
    high: float
    se: float
    df: int
    p: float
    p_adjusted: float  # Holm over all effects of the fit
    level: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All effects of one response, or none with the reason."""

    effects: tuple[Effect, ...]
    n: int
    residual_sd: float | None
    interactions: bool  # whether two-way interactions are in the model
    note: str | None = None

    def of(self, *factors: str) -> tuple[Effect, ...]:
        """The effects of these factors, in the order of their levels."""
        return tuple(e for e in self.effects if e.factors == factors)


def fit_effects(
    factors: Mapping[str, Sequence[str]],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    response: Sequence[float],
    level: float = 0.95,
) -> Fit:
    """Main effects and two-way interactions by ordinary least squares with the seed as block.

    y = seed + sum_f,l b_fl x_fl + sum b_fl,gm x_fl x_gm, x_fl = 1[level l] - 1 / num levels. With this coding b_fl is
    the mean at l minus the mean at the reference (the factor's first level) over all levels of the other factors alike,
    and b_fl,gm = (l,m - ref,m) - (l,ref - ref,ref): how much the effect of l grows when g goes from its reference to m.
    Intervals are t with the residual degrees of freedom. Where the design cannot tell interactions from one another or
    from main effects (fractions, single changes), or leaves no residual, the model is main effects only and says so.
    """
    if not len(settings) == len(seeds) == len(response):
        raise ValueError(f"{len(settings)} settings, {len(seeds)} seeds, {len(response)} responses: one each per run")
    y = np.asarray(response, dtype=float)
    if not np.isfinite(y).all():
        raise ValueError("a response is not finite; runs without a score are left out before the fit")
    main = {(f,): ls for f, ls in factors.items() if len(ls) > 1}
    pairs = {(f, g): (factors[f], factors[g]) for f, g in combinations([f for (f,) in main], 2)}
    block = (np.asarray(seeds)[:, None] == np.unique(np.asarray(seeds, dtype=int))[None, :]).astype(float)
    coded = {f: _coded(ls, [s[f] for s in settings]) for (f,), ls in main.items()}
    terms: list[tuple[tuple[str, ...], tuple[str, ...], np.ndarray]] = [
        ((f,), (name,), coded[f][:, i]) for (f,), ls in main.items() for i, name in enumerate(ls[1:])
    ]
    crossed = [
        ((f, g), (a, b), coded[f][:, i] * coded[g][:, j])
        for (f, g), (left, right) in pairs.items()
        for i, a in enumerate(left[1:])
        for j, b in enumerate(right[1:])
    ]
    notes: list[str] = []
    if crossed and not _estimable(block, [*terms, *crossed], len(y)):
        notes.append("main effects only: the design or the number of runs does not tell interactions apart")
        crossed = []
    terms += crossed
    if not terms or not _estimable(block, terms, len(y)):
        why = "the runs that have a score do not tell the factors apart, or leave nothing to estimate the error from"
        return Fit(effects=(), n=len(y), residual_sd=None, interactions=False, note=why)
    return _solve(block, terms, y, level, interactions=bool(crossed), note="; ".join(notes) or None)


def _coded(levels: Sequence[str], values: Sequence[str]) -> np.ndarray:
    """[runs, levels - 1]: 1[level] - 1 / num levels for every level but the reference."""
    unknown = sorted(set(values) - set(levels))
    if unknown:
        raise ValueError(f"levels {unknown} are none of {list(levels)}")
    chosen = np.asarray(values)[:, None] == np.asarray(levels[1:])[None, :]
    return np.asarray(chosen - 1.0 / len(levels))


def _estimable(block: np.ndarray, terms: Sequence[tuple[Any, Any, np.ndarray]], n: int) -> bool:
    design = np.column_stack([block, *(t[2] for t in terms)])
    return n > design.shape[1] and bool(np.linalg.matrix_rank(design) == design.shape[1])


def _solve(
    block: np.ndarray,
    terms: Sequence[tuple[tuple[str, ...], tuple[str, ...], np.ndarray]],
    y: np.ndarray,
    level: float,
    *,
    interactions: bool,
    note: str | None,
) -> Fit:
    design = np.column_stack([block, *(t[2] for t in terms)])
    df = len(y) - design.shape[1]
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    residual = y - design @ beta
    variance = float(residual @ residual) / df
    se = np.sqrt(np.diag(inverse) * variance)[block.shape[1] :]
    value = beta[block.shape[1] :]
    exact = np.where(value == 0, 0.0, np.copysign(np.inf, value))  # of a fit without residual
    t = np.divide(value, se, out=exact, where=se > 0)
    p = np.minimum(1.0, 2 * stats.t.sf(np.abs(t), df))
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    effects = tuple(
        Effect(
            factors=names, levels=levels, value=float(value[i]), low=float(value[i] - half[i]),
            high=float(value[i] + half[i]), se=float(se[i]), df=df, p=float(p[i]), p_adjusted=adjusted, level=level,
        )
        for i, ((names, levels, _), adjusted) in enumerate(zip(terms, holm([float(x) for x in p]), strict=True))
    )  # fmt: skip
    return Fit(effects=effects, n=len(y), residual_sd=variance**0.5, interactions=interactions, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseContrast:
    """Collapses at a level against its factor's reference level."""

    factor: str
    level: str
    reference: str
    k: int
    n: int
    k_reference: int
    n_reference: int
    p_fisher: float  # two-sided, all runs of either level; ignores which runs belong together
    only_level: int  # matched runs (same seed, same other factors) that collapsed at the level alone
    only_reference: int
    p_paired: float | None  # exact McNemar over the matched runs; None where nothing can be matched

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def collapse_contrasts(
    factors: Mapping[str, Sequence[str]],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    collapsed: Sequence[bool],
) -> list[CollapseContrast]:
    """Exact tests of the collapse counts of every level against its factor's reference.

    Fisher's test of the 2 x 2 table, and the exact McNemar test over pairs of runs that differ in this factor alone:
    given m discordant pairs, the number that collapsed at the level only is Binomial(m, 1/2) under no effect.
    """
    found = []
    for factor, levels in factors.items():
        reference = levels[0]
        matched: dict[str, dict[tuple[Any, ...], bool]] = {name: {} for name in levels}
        counts = {name: [0, 0] for name in levels}
        for setting, seed, bad in zip(settings, seeds, collapsed, strict=True):
            name = setting[factor]
            rest = (seed, *(v for f, v in sorted(setting.items()) if f != factor))
            matched[name][rest] = bool(bad)
            counts[name][0] += bool(bad)
            counts[name][1] += 1
        for name in levels[1:]:
            both = matched[name].keys() & matched[reference].keys()
            only = sum(matched[name][r] and not matched[reference][r] for r in both)
            other = sum(matched[reference][r] and not matched[name][r] for r in both)
            (k, n), (k0, n0) = counts[name], counts[reference]
            found.append(
                CollapseContrast(
                    factor=factor, level=name, reference=reference, k=k, n=n, k_reference=k0, n_reference=n0,
                    p_fisher=float(stats.fisher_exact([[k, n - k], [k0, n0 - k0]]).pvalue),
                    only_level=only, only_reference=other, p_paired=_sign_p(only, other) if both else None,
                )
            )  # fmt: skip
    return found


def _sign_p(a: int, b: int) -> float:
    return float(stats.binomtest(a, a + b, 0.5).pvalue) if a + b else 1.0


def shapley_values(players: Sequence[str], worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Exact Shapley values of a full cube: `worth` has the score of each of the 2^n sets of components.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)): the mean increment of i over all orders
    of adding the components. They sum to v(all) - v(none). Raises ValueError where a set is missing.
    """
    n = len(players)
    missing = 2**n - sum(frozenset(s) in worth for size in range(n + 1) for s in combinations(players, size))
    if missing:
        raise ValueError(f"{missing} of the {2**n} sets of components have no score, and Shapley values need them all")
    weight = [factorial(size) * factorial(n - size - 1) / factorial(n) for size in range(n)]
    return {
        p: sum(
            weight[size] * (worth[frozenset((*rest, p))] - worth[frozenset(rest)])
            for size in range(n)
            for rest in combinations([q for q in players if q != p], size)
        )
        for p in players
    }


def shapley_estimates(
    players: Sequence[str], worth: Mapping[int, Mapping[frozenset[str], float]], level: float = 0.95
) -> dict[str, Estimate]:
    """Shapley values over seeds: seed -> score of every set; only seeds with the whole cube are used.

    The value is linear in the scores, so the mean over seeds is that of the mean scores. The interval is Student's t
    over seeds: a percentile bootstrap over few seeds covers too little (75 % instead of 95 % at three).
    """
    each: dict[str, list[float | None]] = {p: [] for p in players}
    for scores in worth.values():
        if len(scores) == 2 ** len(players):
            for player, value in shapley_values(players, scores).items():
                each[player].append(value)
    return {p: mean_t(values, level) for p, values in each.items()}


def expected_best(values: Sequence[float]) -> list[float]:
    """E[max of k] for k = 1 .. n when k of the n values are drawn without replacement: tuned score against budget.

    sum over the ordered values v_(i) of v_(i) C(i - 1, k - 1) / C(n, k), exact. Source: Dodge et al. 2019
    (1909.03004), in the version without replacement (Tang et al. 2020).
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    return [float(sum(v * comb(i, k - 1) for i, v in enumerate(ordered)) / comb(n, k)) for k in range(1, n + 1)]
