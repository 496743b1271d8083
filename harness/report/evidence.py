"""What stands behind the verdict: aggregates, time to collapse, whole curves, and every test of a pair of arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.stats.aggregate import aggregates, improvement, profile
from harness.stats.collapse import barnard_p, mcnemar_p, rate_difference, two_part_mean
from harness.stats.curve import area, asymptote, fit_sigmoid, tail_risk
from harness.stats.estimate import mean_t
from harness.stats.paired import paired_difference
from harness.stats.survival import Lifetime, kaplan_meier, logrank_p, paired_logrank_p

BOOTSTRAP_SEED, RESAMPLES = 0, 4000
LEVELS = 41  # of a performance profile
UNTESTED = ("model, task or response length differ much", "the model has experts where this one has none",
            "the number of updates per rollout batch differs")  # fmt: skip
Run = dict[str, Any]
Runs = Mapping[str, Sequence[Run]]


def arm_evidence(arm: dict[str, Any], runs: Sequence[Run], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same row with its aggregates over runs, risk, time to collapse and whole curve."""
    counted = [r for r in runs if r["counted"]]
    ids = [r["id"] for r in counted]
    scores = np.array([r["score"] for r in counted], dtype=float)
    found = aggregates([scores], np.random.default_rng(BOOTSTRAP_SEED), RESAMPLES)
    lost = [r for r in counted if r["status"] == "collapsed"]
    survived = [r["score"] for r in counted if r["status"] != "collapsed"]
    two = two_part_mean(survived, [r["score"] for r in lost]).as_dict() if lost else None
    fits = [f for f in (fit_sigmoid(ln["sampled_tokens"], ln["score"]) for ln in lines) if f is not None]
    return {
        **arm,
        "iqm": {**found["IQM"].as_dict(), "runs": ids},
        "median": {**found["median"].as_dict(), "runs": ids},
        "optimality_gap": {**found["optimality gap"].as_dict(), "runs": ids},
        "two_part": {**two, "runs": ids} if two else None,
        "tail_risk": {"value": tail_risk(list(scores)), "n": len(scores), "low": None, "high": None, "runs": ids,
                      "estimator": "mean score of the worst quarter of the runs", "note": "no interval: a point"},
        **{key: _mean(counted, key) for key in ("drawdown", "dispersion", "last_evals")},
        "survival": kaplan_meier([_lifetime(r) for r in _ended(runs)]).as_dict(),
        "asymptote": {**asymptote(fits).as_dict(), "runs": [ln["run"] for ln in lines],
                      "held_out_error": float(np.mean(e)) if (e := [f.error for f in fits if f.error is not None])
                      else None},
    }  # fmt: skip


def _mean(runs: Sequence[Run], key: str) -> dict[str, Any]:
    kept = [r for r in runs if r[key] is not None]
    found = mean_t([r[key] for r in kept]).as_dict()
    if found["low"] is not None and any(r["status"] == "collapsed" for r in kept):
        found |= {"low": None, "high": None, "note": "a run collapsed: a t interval would under-cover"}
    return {**found, "runs": [r["id"] for r in kept]}


def _ended(runs: Sequence[Run]) -> list[Run]:
    return [r for r in runs if r["status"] in ("completed", "collapsed", "no_learning") and r["validity"] != "INVALID"]


def _lifetime(run: Run) -> Lifetime:
    observed = run["collapse_tokens"] is not None
    return Lifetime(time=float(run["collapse_tokens"] if observed else run["sampled_tokens"]), observed=observed)


def pair_evidence(c: dict[str, Any], runs: Runs, curves: Mapping[str, Any], delta: float) -> dict[str, Any]:
    """The same comparison with P(A > B), tests of collapse rates and times, and the difference of whole curves."""
    a, b = ([r for r in runs[c[k]] if r["counted"] and r["seed"] in c["seeds"]] for k in ("a", "b"))
    a, b = (sorted(x, key=lambda r: r["seed"]) for x in (a, b))
    scores = [[np.array([r["score"] for r in x], dtype=float)] for x in (a, b)]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    better = improvement(scores[0], scores[1], rng, RESAMPLES, paired=True).as_dict() if a and b else None
    return {
        **c,
        "improvement": {**better, "runs": c["runs"]} if better else None,
        "collapse_test": _collapse_test(_ended(runs[c["a"]]), _ended(runs[c["b"]])),
        "auc": _auc(c, curves, delta),
    }  # fmt: skip


def _collapse_test(a: Sequence[Run], b: Sequence[Run]) -> dict[str, Any]:
    """k/n of both arms, their difference, Barnard, McNemar over common seeds, log-rank over common seeds."""
    lost_a, lost_b = ({r["seed"]: r["status"] == "collapsed" for r in x} for x in (a, b))
    common = sorted(lost_a.keys() & lost_b.keys())
    by_seed = [{r["seed"]: _lifetime(r) for r in x} for x in (a, b)]
    paired = [[lives[s] for s in common] for lives in by_seed]
    k_a, k_b = sum(lost_a.values()), sum(lost_b.values())
    ids = [r["id"] for r in (*a, *b)]
    any_lost = bool(k_a + k_b)
    return {
        **rate_difference(k_a, len(a), k_b, len(b)).as_dict(),
        "k_a": k_a, "n_a": len(a), "k_b": k_b, "n_b": len(b), "runs": ids,
        "p_barnard": barnard_p(k_a, len(a), k_b, len(b)),
        "p_mcnemar": mcnemar_p([lost_a[s] for s in common], [lost_b[s] for s in common]),
        "p_logrank_paired": paired_logrank_p(paired[0], paired[1]) if any_lost else None,
        "p_logrank": logrank_p([_lifetime(r) for r in a], [_lifetime(r) for r in b]) if any_lost and a and b else None,
    }  # fmt: skip


def _auc(c: Mapping[str, Any], curves: Mapping[str, Any], delta: float) -> dict[str, Any] | None:
    """Paired difference of the area under the score over log sampled tokens, up to the shortest run of the two arms."""
    lines = [
        {ln["seed"]: ln for ln in curves[c[k]]["runs"] if ln["counted"] and ln["seed"] in c["seeds"]}
        for k in ("a", "b")
    ]
    common = sorted(lines[0].keys() & lines[1].keys())
    spans = [(_first(ln["sampled_tokens"]), ln["sampled_tokens"][-1]) for arm in lines for ln in arm.values()]
    spans = [s for s in spans if s[0] is not None and s[0] < s[1]]
    if not common or len(spans) < 2 * len(common):
        return None
    start, end = max(s[0] for s in spans), min(s[1] for s in spans)
    areas = [[area(arm[s]["sampled_tokens"], arm[s]["score"], start, end) for s in common] for arm in lines]
    kept = [(x, y) for x, y in zip(*areas, strict=True) if x is not None and y is not None]
    d = paired_difference([x for x, _ in kept], [y for _, y in kept], delta).as_dict()
    return {
        "value": d["value"], "low": d["low"], "high": d["high"], "level": d["level"], "n": d["n"], "note": d["note"],
        "estimator": "mean paired difference of the mean score over log sampled tokens, Student-t interval",
        "p_t": d["p_t"], "from": start, "to": end, "runs": [arm[s]["run"] for arm in lines for s in common],
    }  # fmt: skip


def _first(tokens: Sequence[float]) -> Any:
    return next((t for t in tokens if t > 0), None)


def profiles(runs: Runs, arms: Sequence[str]) -> dict[str, Any]:
    """Share of runs with a score above each level, collapsed runs included."""
    levels = [round(i / (LEVELS - 1), 6) for i in range(LEVELS)]
    found = {}
    for arm in arms:
        scores = [r["score"] for r in runs[arm] if r["counted"]]
        if scores:
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            found[arm] = {**profile([np.array(scores, dtype=float)], levels, rng, 1000), "n": len(scores)}
    return {"levels": levels, "arms": found}


def use_when(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Condition -> arms that nothing here distinguishes from the best under it; empty where it was not tested."""
    group = next((g for g in report["groups"] if g["ranked"]), None)
    best = list(group["best_set"]) if group else []
    arms = {a["name"]: a for a in report["arms"]}
    why = "not distinguishable from the best mean" if best else "nothing is ranked"
    rows = [{"condition": "the score decides", "arms": best, "basis": why}]
    if best:
        held = [n for n in best if arms[n]["collapse"]["k"] == 0]
        bounds = [arms[n]["collapse"]["high"] for n in held if arms[n]["collapse"]["high"] is not None]
        basis = "of these, no collapse seen" + (f"; rates up to {max(bounds):.0%} are compatible" if bounds else "")
        rows.append({"condition": "a collapse is unacceptable", "arms": held, "basis": basis.replace("%", " %")})
        for condition, key, unit in (
            ("short responses matter", "length", "tokens"),
            ("machine time is short", "wallclock_s", "s per run"),
            ("memory is short", "memory_mib", "MiB"),
        ):
            rows.append({"condition": condition, **_least([arms[n] for n in best], key, unit)})
    rows += [{"condition": c, "arms": [], "basis": "not tested"} for c in UNTESTED]
    return rows


def _least(arms: Sequence[Mapping[str, Any]], key: str, unit: str) -> dict[str, Any]:
    """The arms whose interval of a cost reaches down to the smallest mean's interval."""
    known = [a for a in arms if a[key]["value"] is not None and a[key]["low"] is not None]
    if not known:
        return {"arms": [], "basis": "no interval: too few runs"}
    low = min(known, key=lambda a: a[key]["value"])
    names = [a["name"] for a in known if a[key]["low"] <= low[key]["high"]]
    return {"arms": names, "basis": f"of these, intervals that meet the smallest, {low[key]['value']:.4g} {unit}"}
