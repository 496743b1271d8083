"""Arms, groups, comparisons: what page one ranks and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.report.collect import COUNTED, NOTHING, PHASES, Shares
from harness.stats.compare import COLLAPSE_T_FROM, Arm, Comparison, compare_family
from harness.stats.estimate import Estimate, jeffreys, mean_t, variance_components
from harness.stats.rank import rank_distribution
from harness.stats.threshold import first_crossing, median_crossing, restricted_mean

BRACKETS = {
    "outcome": "Outcome reward",
    "dense": "Dense credit",
    "control": "Controls",
}
RANKS_FROM = 5  # seed pairs; a percentile bootstrap over fewer is far too sure of itself
SPENT = ("sampled_tokens", "trained_tokens", "optimizer_steps", "steps", "prompts")
SHARES = (0.5, 0.75, 0.9)  # of the best mean score
Run = dict[str, Any]


def groups(arms: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Arms that may be ranked against each other (same bracket and roster), each with its own reference arm."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for bracket in BRACKETS:
        for arm in arms:
            if arm["bracket"] == bracket:
                found.setdefault((bracket, arm["roster"]), []).append(arm)
    main = next((a for a in arms if a["name"] == reference), None)
    listed = []
    for (bracket, roster), members in found.items():
        names = [a["name"] for a in members]
        own = reference if bracket == "control" and main else _group_reference(members, main)
        listed.append({
            "bracket": bracket, "roster": roster, "title": f"{BRACKETS[bracket]}, {roster} settings",
            "ranked": bracket != "control", "reference": own, "arms": names,
        })  # fmt: skip
    return listed


def _group_reference(members: Sequence[dict[str, Any]], main: dict[str, Any] | None) -> str | None:
    if main is not None:
        for arm in members:
            if arm["name"] == main["name"]:
                return str(arm["name"])
        for arm in members:
            if arm["algorithm"] == main["algorithm"]:
                return str(arm["name"])
    return str(members[0]["name"]) if len(members) > 1 else None


def estimate(runs: Sequence[Run], key: str, note: str | None = None) -> dict[str, Any]:
    """Mean over the counted runs of an arm with its t interval and the ids it comes from."""
    kept = [r for r in runs if r["counted"] and r[key] is not None]
    found = mean_t([r[key] for r in kept]).as_dict()
    return {**found, "note": found["note"] if kept else (note or found["note"]), "runs": [r["id"] for r in kept]}


def arm_row(arm: Mapping[str, Any], runs: Sequence[Run], planned: int) -> dict[str, Any]:
    """One arm over its seeds."""
    ended = [r for r in runs if r["status"] in COUNTED and r["validity"] != "INVALID"]
    counted = [r for r in runs if r["counted"]]
    survived = [r for r in counted if r["status"] != "collapsed"]
    gains = [{**r, "gain": r["score"] - r["base_score"] if r["base_score"] is not None else None} for r in counted]
    deviations = sorted({d for r in runs for d in r["deviations"]})
    collapsed = len(survived) < len(counted) < COLLAPSE_T_FROM
    statuses = {s: sum(r["status"] == s for r in runs) for s in (*COUNTED, "infra_failed", "unfinished")}
    return {
        **arm,
        "deviations": (deviations or [f"{k}: {v}" for k, v in arm["overrides"].items()])
        + [f"recipe.{k}: {v}" for k, v in arm["recipe"].items()],
        "n": len(counted),
        "seeds": [{"seed": r["seed"], "run": r["id"], "score": r["score"], "status": r["status"]} for r in counted],
        "score": _point(estimate(runs, "score"), collapsed),
        "score_survivors": estimate(survived, "score") if len(survived) < len(counted) else None,
        "gain": _point(estimate(gains, "gain", "no evaluation before training"), collapsed),
        "collapse": {**jeffreys(sum(r["status"] == "collapsed" for r in ended), len(ended)).as_dict(),
                     "k": sum(r["status"] == "collapsed" for r in ended), "runs": [r["id"] for r in ended]},
        "no_learning": {"k": statuses["no_learning"], "n": len(ended)},
        "statuses": {**statuses, "planned": planned, "missing": max(0, planned - len(runs))},
        "invalid": [r["id"] for r in runs if r["validity"] == "INVALID"],
        "length": estimate(runs, "length"),
        "truncated": estimate(runs, "truncated"),
        "reward_end": estimate(runs, "reward_end", "reward was not recorded"),
        "zero_var": estimate(runs, "zero_var", "groups of one response have no variance"),
        "step_s": estimate(runs, "step_s", "not measured"),
        "entropy_end": estimate(runs, "entropy_end", "entropy was not recorded"),
        "kl_old": estimate(runs, "kl_old", _on_policy(runs) or "not recorded"),
        "clip_tok_any": _clip(runs),
        "explained_var": estimate(runs, "explained_var", "the algorithm has no critic"),
        "phases": {name: estimate([{**r, name: r["phases"][name]} for r in runs], name, "not measured")
                   for name in PHASES},
        "wallclock_s": estimate(runs, "wallclock_s"),
        "seconds_per_million": estimate(runs, "seconds_per_million", "not measured"),
        "memory_mib": estimate(runs, "memory_mib", "not measured"),
        **{key: estimate(runs, key) for key in SPENT},
    }  # fmt: skip


def _point(found: dict[str, Any], collapsed: bool) -> dict[str, Any]:
    """With a collapse among fewer than twenty runs a t interval of the mean under-covers: the mean stays a point."""
    if not collapsed or found["low"] is None:
        return found
    return {
        **found,
        "low": None,
        "high": None,
        "note": "a run collapsed: mean as a point, interval of the survivors beside it",
    }


def _on_policy(runs: Sequence[Run]) -> str | None:
    if runs and all(r["updates_per_batch"] == 1 for r in runs if r["updates_per_batch"] is not None):
        known = [r for r in runs if r["updates_per_batch"] is not None]
        return "one update per rollout batch: the ratio is 1 by construction" if known else None
    return None


def _clip(runs: Sequence[Run]) -> dict[str, Any]:
    reason = _on_policy(runs)
    found = estimate([] if reason else runs, "clip_tok_any", reason or "the surrogate does not clip, or not recorded")
    return {**found, "estimator": "mean over steps (last update of each) and runs, Student-t interval"}


def compare(
    listed: Sequence[dict[str, Any]], runs: Mapping[str, Sequence[Run]], questions: Mapping[str, Shares],
    delta: float, alpha: float = 0.05,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every arm against the reference of its group: one family for the whole page."""
    pairs = [
        (name, g["reference"], g) for g in listed for name in g["arms"] if g["reference"] and name != g["reference"]
    ]
    pairs = [p for p in pairs if _scores(runs[p[0]]) and _scores(runs[p[1]])]
    found = _compare([(a, b) for a, b, _ in pairs], runs, questions, delta, alpha)
    return [_plain(c, runs, g) for c, (_, _, g) in zip(found, pairs, strict=True)]


def all_pairs(
    listed: Sequence[dict[str, Any]], runs: Mapping[str, Sequence[Run]], questions: Mapping[str, Shares],
    delta: float, alpha: float = 0.05,
) -> list[dict[str, Any]]:  # fmt: skip
    """All pairs inside each ranked group; a family per group, exploratory."""
    rows = []
    for g in listed:
        names = [n for n in g["arms"] if _scores(runs[n])] if g["ranked"] else []
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        rows += [{**_plain(c, runs, g), "exploratory": True} for c in _compare(pairs, runs, questions, delta, alpha)]
    return rows


def _scores(runs: Sequence[Run]) -> dict[int, float]:
    return {r["seed"]: r["score"] for r in runs if r["counted"]}


def _compare(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Sequence[Run]], questions: Mapping[str, Shares],
    delta: float, alpha: float,
) -> list[Comparison]:  # fmt: skip
    arms = {
        name: Arm(name=name, scores=_scores(runs[name]), collapsed=any(r["status"] == "collapsed" for r in runs[name]))
        for pair in pairs
        for name in pair
    }
    noise = {(a, b): se for a, b in pairs if (se := _eval_se(runs[a], runs[b], questions)) is not None}
    return compare_family([(arms[a], arms[b]) for a, b in pairs], delta, noise, alpha)


def _eval_se(a: Sequence[Run], b: Sequence[Run], questions: Mapping[str, Shares]) -> float | None:
    """Evaluation SE of one run pair's difference: paired where both answered the same questions, else in quadrature."""
    found = []
    other = {r["seed"]: r for r in b if r["counted"]}
    for run in (r for r in a if r["counted"] and r["seed"] in other):
        mate = other[run["seed"]]
        left, right = questions.get(run["id"], NOTHING), questions.get(mate["id"], NOTHING)
        if len(left.ids) > 1 and (left.ids is right.ids or sorted(left.ids) == sorted(right.ids)):
            d = _aligned(left) - _aligned(right) if left.ids != right.ids else left.share - right.share
            found.append(float(d.std(ddof=1) / np.sqrt(len(d))))
        elif run["eval_se"] is not None and mate["eval_se"] is not None:
            found.append(float(np.hypot(run["eval_se"], mate["eval_se"])))
    return float(np.sqrt(np.mean(np.square(found)))) if found else None


def _aligned(shares: Shares) -> np.ndarray:
    return np.array([share for _, share in sorted(zip(shares.ids, shares.share, strict=True))])


def _plain(c: Comparison, runs: Mapping[str, Sequence[Run]], group: Mapping[str, Any]) -> dict[str, Any]:
    d = c.difference.as_dict()
    noise = None if c.eval_noise is None or not np.isfinite(c.eval_noise) else c.eval_noise
    return {
        "a": c.a, "b": c.b, "bracket": group["bracket"], "roster": group["roster"],
        "estimator": "mean paired seed difference a - b, Student-t interval",
        "value": d["value"], "low": d["low"], "high": d["high"], "level": d["level"], "n": d["n"], "sd": d["sd"],
        "p_exchange": c.p_exchange, "simultaneous": list(c.simultaneous) if c.simultaneous else None,
        "alpha": c.alpha, "seeds_needed_tost": c.seeds_needed_tost, "exploratory": False,
        "p_t": d["p_t"], "p_sign_flip": d["p_sign_flip"], "p_tost": d["p_tost"], "rho": d["rho"], "note": d["note"],
        "test": c.test, "p_adjusted": c.p_adjusted, "p_tost_adjusted": c.p_tost_adjusted, "family": c.family,
        "mde": c.mde, "seeds_needed": c.seeds_needed, "seeds_needed_upper": c.seeds_needed_upper,
        "eval_noise": noise,
        "collapse": any(r["status"] == "collapsed" for x in (c.a, c.b) for r in runs[x]),
        "label": c.label, "why": c.why, "seeds": list(c.seeds),
        "runs": [r["id"] for arm in (c.a, c.b) for r in runs[arm] if r["counted"] and r["seed"] in c.seeds],
    }  # fmt: skip


def best_sets(
    listed: Sequence[dict[str, Any]], arms: Mapping[str, dict[str, Any]], pairs: Sequence[dict[str, Any]]
) -> None:
    """Marks, in each ranked group, the arms not distinguishable from the one with the best mean; sorts by mean."""
    for g in listed:
        scored = [n for n in g["arms"] if arms[n]["score"]["value"] is not None]
        g["arms"] = sorted(g["arms"], key=lambda n: (n not in scored, -(arms[n]["score"]["value"] or 0.0)))
        g["best_set"] = []
        if not (g["ranked"] and len(scored) > 1):
            continue
        best = g["arms"][0]
        beaten = {p["b"] if p["a"] == best else p["a"] for p in pairs
                  if (p["a"], p["label"]) == (best, "A>B") or (p["b"], p["label"]) == (best, "B>A")}  # fmt: skip
        g["best_set"] = [n for n in g["arms"] if n in scored and n not in beaten]


def ranks(listed: Sequence[dict[str, Any]], runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Bootstrap rank distribution of each ranked group with two arms and more."""
    found = []
    for g in listed:
        scores = {n: _scores(runs[n]) for n in g["arms"] if _scores(runs[n])}
        common = sorted(set.intersection(*(set(s) for s in scores.values()))) if scores else []
        if g["ranked"] and len(scores) > 1 and len(common) >= RANKS_FROM:
            found.append({
                "bracket": g["bracket"], "roster": g["roster"], "n": len(common),
                "estimator": "joint bootstrap over seed pairs, 4000 resamples, seed 0",
                "arms": [{"arm": n, "probability": p} for n, p in rank_distribution(scores).items()],
            })  # fmt: skip
    return found


def thresholds(curves: Mapping[str, Any], arms: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Budget to 50, 75 and 90 % of the best arm's mean score on the curve's split; counted runs, censored ones kept."""
    curves = {n: {**c, "runs": [ln for ln in c["runs"] if ln["counted"]]} for n, c in curves.items()}
    curves = {n: c for n, c in curves.items() if c["runs"]}
    compared = [n for n in curves if arms[n]["bracket"] != "control"]
    tops = [v for n in compared for v in curves[n]["mean"]["step"]["mean"][-1:] if v is not None]
    if not tops:
        return []
    best = max(tops)
    return [_threshold(share, share * best, curves) for share in SHARES]


def _threshold(share: float, level: float, curves: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for axis in ("sampled_tokens", "step"):
        ends = [line[axis][-1] for c in curves.values() for line in c["runs"]]
        horizon = min(ends) if ends else 0.0
        for arm, data in curves.items():
            found = [x for line in data["runs"] if (x := first_crossing(line[axis], line["score"], level)) is not None]
            if found:
                mean: Estimate = restricted_mean(found, horizon)
                rows.setdefault(arm, {})[axis] = {
                    **mean.as_dict(), "median": median_crossing(found), "reached": sum(not c.censored for c in found),
                    "horizon": horizon, "followed": min(line[axis][-1] for line in data["runs"]),
                    "runs": [line["run"] for line in data["runs"]],
                    "each": [{"value": c.value, "censored": c.censored} for c in found],
                }  # fmt: skip
    return {"share": share, "score": level, "arms": rows}


def base(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Score before training: one value per seed pair, since all arms of a seed start from the same weights."""
    seeds: dict[int, Run] = {}
    for run in (r for members in runs.values() for r in members if r["base_score"] is not None):
        seeds.setdefault(run["seed"], run)
    found = mean_t([r["base_score"] for r in seeds.values()]).as_dict()
    return {**found, "runs": [r["id"] for r in seeds.values()]}


def noise(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Seed SD against evaluation SE per arm, and the spread within and between cold starts."""
    rows = []
    for arm, members in runs.items():
        kept = [r for r in members if r["counted"]]
        ses = [r["eval_se"] for r in kept if r["eval_se"] is not None]
        se = float(np.sqrt(np.mean(np.square(ses)))) if ses else None
        sd = float(np.std([r["score"] for r in kept], ddof=1)) if len(kept) > 2 else None
        starts = [r for r in kept if r["start_weights"]]
        rows.append({
            "arm": arm, "n": len(kept), "seed_sd": sd, "eval_se": se,
            "ratio": se / sd if se is not None and sd else None,
            "starts": variance_components([r["score"] for r in starts], [r["start_weights"] for r in starts]),
        })  # fmt: skip
    return rows
