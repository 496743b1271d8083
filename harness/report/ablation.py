"""What an ablation says: effects, interactions, single changes, Shapley values, steps of a path. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import prod
from pathlib import Path
from typing import Any

from harness.core.ablation import Ablation, Factor, read_ablation
from harness.core.results import read_study
from harness.report.collect import run_facts
from harness.stats.effects import Effect, Fit, collapse_contrasts, fit_effects, shapley_estimates
from harness.stats.estimate import jeffreys, mean_t
from harness.stats.paired import paired_difference

RESPONSES = {  # column of a run -> unit; the score decides, the others describe
    "score": "held-out score",
    "length": "response tokens",
    "sampled_tokens": "sampled tokens",
    "wallclock_s": "seconds",
}
FEW_SEEDS = 5
Run = dict[str, Any]


def analyse(study: Path) -> dict[str, Any]:
    """Everything of report/ablation.json, from the study's folder."""
    record, folder = read_ablation(study), read_study(study)
    rows = [run_facts(run) for run in folder.runs]
    for row in rows:
        row["collapsed"] = row["status"] == "collapsed"
        row["setting"] = record.cells.get(row["arm"])
    runs = [r for r in rows if r["counted"] and r["setting"] is not None]
    factors = {f.name: [level.name for level in f.levels] for f in (*record.design.factors, *record.design.stress)}
    fits = {name: _fit(factors, runs, name) for name in RESPONSES}
    scores: dict[str, dict[int, float]] = {}
    for row in (r for r in rows if r["counted"]):
        scores.setdefault(row["arm"], {})[row["seed"]] = row["score"]
    return {
        "schema_version": 1,
        "study": folder.spec.name,
        "design": record.design.model_dump(mode="json"),
        "seeds": list(folder.spec.seeds),
        "delta": folder.spec.delta,
        "planned": len(folder.spec.arms) * len(folder.spec.seeds),
        "uncounted": [{"run": r["id"], "why": r["why_not_counted"]} for r in rows if not r["counted"]],
        "missing": [list(pair) for pair in folder.missing],
        "cells": [_cell(name, record, rows) for name in (a.name for a in folder.spec.arms)],
        "fits": {name: _fit_data(fit) for name, fit in fits.items()},
        "effects": _effects(factors, fits, runs),
        "single": _single(record, scores, folder.spec.delta),
        "path": _path(record, scores, folder.spec.delta),
        "beside": _beside(record, scores, folder.spec.delta, folder.spec.reference_arm),
        "shapley": _shapley(record, scores),
        "notes": _notes(runs, folder.spec.seeds, fits),
    }


def _fit(factors: Mapping[str, Sequence[str]], runs: Sequence[Run], response: str) -> Fit:
    kept = [r for r in runs if r[response] is not None]
    return fit_effects(factors, [r["setting"] for r in kept], [r["seed"] for r in kept], [r[response] for r in kept])


def _fit_data(fit: Fit) -> dict[str, Any]:
    return {
        "n": fit.n, "residual_sd": fit.residual_sd, "interactions": fit.interactions, "note": fit.note,
        "effects": [e.as_dict() for e in fit.effects],
    }  # fmt: skip


def _cell(arm: str, record: Ablation, rows: Sequence[Run]) -> dict[str, Any]:
    mine = [r for r in rows if r["arm"] == arm]
    counted = [r for r in mine if r["counted"]]
    return {
        "arm": arm,
        "setting": record.cells.get(arm),
        "score": mean_t([r["score"] for r in counted]).as_dict(),
        "collapsed": jeffreys(sum(r["collapsed"] for r in counted), len(counted)).as_dict(),
        "length": mean_t([r["length"] for r in counted]).as_dict(),
        "sampled_tokens": mean_t([r["sampled_tokens"] for r in counted]).as_dict(),
        "wallclock_s": mean_t([r["wallclock_s"] for r in counted]).as_dict(),
        "runs": [r["id"] for r in mine],
    }


def _effects(
    factors: Mapping[str, Sequence[str]], fits: Mapping[str, Fit], runs: Sequence[Run]
) -> list[dict[str, Any]]:
    """The effect table: a row per level of a factor that is not its reference."""
    contrasts = collapse_contrasts(
        factors, [r["setting"] for r in runs], [r["seed"] for r in runs], [r["collapsed"] for r in runs]
    )
    table = []
    for contrast in contrasts:
        main = {
            name: next((e.as_dict() for e in fit.of(contrast.factor) if e.levels == (contrast.level,)), None)
            for name, fit in fits.items()
        }
        crossed = [e for e in fits["score"].effects if len(e.factors) == 2 and _touches(e, contrast)]
        strongest = max(crossed, key=lambda e: abs(e.value), default=None)
        table.append(
            {
                "factor": contrast.factor, "level": contrast.level, "reference": contrast.reference, **main,
                "collapse": contrast.as_dict(), "interaction": strongest.as_dict() if strongest else None,
            }
        )  # fmt: skip
    return table


def _touches(effect: Effect, contrast: Any) -> bool:
    return (contrast.factor, contrast.level) in zip(effect.factors, effect.levels, strict=True)


def _difference(a: str, b: str, scores: Mapping[str, Mapping[int, float]], delta: float) -> dict[str, Any]:
    """Mean of a - b over the seeds both have."""
    seeds = sorted(set(scores.get(a, {})) & set(scores.get(b, {})))
    found = paired_difference([scores[a][s] for s in seeds], [scores[b][s] for s in seeds], delta)
    return {"a": a, "b": b, "seeds": seeds, **found.as_dict()}


def _named(record: Ablation) -> dict[tuple[str, ...], str]:
    """Setting of the design's factors -> arm, where no stress factor multiplies the cells."""
    names = [f.name for f in record.design.factors]
    if record.design.stress:
        return {}
    return {tuple(setting[n] for n in names): arm for arm, setting in record.cells.items()}


def _single(record: Ablation, scores: Mapping[str, Mapping[int, float]], delta: float) -> list[dict[str, Any]]:
    """Leave-one-out and add-one-in of every component: they differ exactly where components interact."""
    factors, cells = record.design.factors, _named(record)
    if any(len(f.levels) != 2 for f in factors):
        return []
    first, last = _ends(factors)
    rows = []
    for i, factor in enumerate(factors):
        out = cells.get((*last[:i], first[i], *last[i + 1 :]))
        alone = cells.get((*first[:i], last[i], *first[i + 1 :]))
        full, core = cells.get(last), cells.get(first)
        row = {
            "factor": factor.name,
            "leave_one_out": _difference(full, out, scores, delta) if full and out else None,
            "add_one_in": _difference(alone, core, scores, delta) if alone and core else None,
        }
        if row["leave_one_out"] or row["add_one_in"]:
            rows.append(row)
    return rows


def _ends(factors: Sequence[Factor]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(f.levels[0].name for f in factors), tuple(f.levels[-1].name for f in factors)


def _path(record: Ablation, scores: Mapping[str, Mapping[int, float]], delta: float) -> list[dict[str, Any]]:
    """The increments of a path, in its order; another order would give others."""
    if record.design.kind != "path" or record.design.stress:
        return []
    steps = [*pairwise(record.cells)]
    names = [f.name for f in record.design.factors]
    return [{"factor": name, **_difference(b, a, scores, delta)} for name, (a, b) in zip(names, steps, strict=True)]


def _beside(
    record: Ablation, scores: Mapping[str, Mapping[int, float]], delta: float, reference: str
) -> list[dict[str, Any]]:
    """Arms beside the design against the study's reference arm."""
    return [_difference(arm, reference, scores, delta) for arm in record.extra]


def _shapley(record: Ablation, scores: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Exact Shapley values of the components over a full cube of two-level factors."""
    factors = record.design.factors
    cells = _named(record)
    if any(len(f.levels) != 2 for f in factors) or len(cells) != prod(len(f.levels) for f in factors):
        return []
    _, last = _ends(factors)
    names = [f.name for f in factors]
    worth: dict[int, dict[frozenset[str], float]] = {}
    for setting, arm in cells.items():
        inside = frozenset(n for n, level, top in zip(names, setting, last, strict=True) if level == top)
        for seed, score in scores.get(arm, {}).items():
            worth.setdefault(seed, {})[inside] = score
    return [{"factor": n, **e.as_dict()} for n, e in shapley_estimates(names, worth).items()]


def _notes(runs: Sequence[Run], seeds: Sequence[int], fits: Mapping[str, Fit]) -> list[str]:
    """What a reader must know before believing the tables."""
    notes = []
    if fits["score"].note:
        notes.append(f"Score: {fits['score'].note}.")
    collapsed = sum(r["collapsed"] for r in runs)
    if collapsed:
        notes.append(
            f"{collapsed} of {len(runs)} runs collapsed and count with their real score: the spread is then not "
            "normal and the intervals of the score are too narrow; read the collapse columns first."
        )
    if len(seeds) < FEW_SEEDS:
        notes.append(
            f"{len(seeds)} seeds are a screening: single changes and Shapley values have {max(0, len(seeds) - 1)} "
            "degrees of freedom; the effects of the fit borrow strength from all cells."
        )
    notes.append(
        "Only the score was to be tested; the effects on length, tokens and seconds are exploratory. Seconds depend on "
        "what else the machine did."
    )
    return notes


def interaction_matrix(
    effects: Sequence[Mapping[str, Any]],
) -> tuple[list[str], dict[tuple[str, str], Mapping[str, Any]]]:
    """Labels `factor: level` and the interaction of every two of them."""
    crossed = [e for e in effects if len(e["factors"]) == 2]
    labels = [f"{e['factors'][0]}: {e['levels'][0]}" for e in effects if len(e["factors"]) == 1]
    cells = {}
    for e in crossed:
        a, b = (f"{f}: {level}" for f, level in zip(e["factors"], e["levels"], strict=True))
        cells[a, b] = cells[b, a] = e
    known = {pair for pair in cells if pair[0] in labels and pair[1] in labels}
    return labels, {pair: cells[pair] for pair in combinations(labels, 2) if pair in known}
