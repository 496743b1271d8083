"""Several studies in one report: each by itself, and their arms averaged over the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.errors import UsageError
from harness.report.build import SCHEMA_VERSION, build_report
from harness.report.evidence import BOOTSTRAP_SEED, RESAMPLES
from harness.report.rules import check_rules
from harness.stats.aggregate import aggregates, improvement
from harness.stats.collapse import pooled_p
from harness.stats.estimate import jeffreys

if TYPE_CHECKING:
    from harness.core.results import StudyFolder

KIND = "report of several studies"
Report = Mapping[str, Any]
Run = dict[str, Any]


def build_several(studies: Sequence[StudyFolder]) -> dict[str, Any]:
    """{schema_version, kind, names, headline, details, watermarks, across, studies: a report each}."""
    names = [s.path.resolve().name for s in studies]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise UsageError(
            f"{', '.join(twice)} more than once", "a study is a stratum of the average and counts once",
            "name every study folder once, under different folder names",
        )  # fmt: skip
    reports = [build_report(s, together=len(studies)) for s in studies]
    found = average(dict(zip(names, reports, strict=True)))
    return {
        "schema_version": SCHEMA_VERSION, "kind": KIND, "names": names, "headline": _headline(found, len(names)),
        "details": [f"{n}: {r['answer']['headline']}" for n, r in zip(names, reports, strict=True)],
        "watermarks": list(dict.fromkeys(r["study"]["watermark"] for r in reports if r["study"]["watermark"])),
        "across": found, "studies": reports,
    }  # fmt: skip


def check_several(data: Report) -> None:
    """The rules of honest reporting for every study, and the error rate shared by all of them."""
    for report in data["studies"]:
        check_rules(report)


def average(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Arms over the studies that rank: aggregates, collapses, and differences from the reference."""
    strata = [n for n, r in reports.items() if r["validity"]["reason"] is None and any(a["n"] for a in r["arms"])]
    scores = {n: _by_arm(reports[n]) for n in strata}
    arms = list(dict.fromkeys(a["name"] for n in strata for a in reports[n]["arms"]))
    missing = {a: [n for n in strata if a not in scores[n]] for a in arms}
    kept = [a for a in arms if not missing[a]]
    left_out = [{"arm": a, "missing": m} for a, m in missing.items() if m]
    empty: dict[str, Any] = {"strata": strata, "left_out": left_out, "arms": [], "pairs": [], "reference": None}
    if len(strata) < 2:
        return {
            **empty,
            "reason": f"{len(strata)} of {len(reports)} studies can be ranked: there is nothing to average.",
        }
    if not kept:
        return {**empty, "reason": f"No arm has a score in all of {', '.join(strata)}: arms are matched by name, "
                                   "and these share no task. Each study stands for itself below."}  # fmt: skip
    wanted = reports[strata[0]]["study"]["reference"]
    reference = wanted if wanted in kept else None
    rows = [_arm(a, [scores[n][a] for n in strata]) for a in kept]
    rows.sort(key=lambda r: -r["mean"]["value"])
    others = [a for a in kept if a != reference] if reference else []
    pairs = [_pair(a, str(reference), [(scores[n][a], scores[n][str(reference)]) for n in strata]) for a in others]
    return {**empty, "reason": None, "arms": rows, "reference": reference,
            "pairs": [p for p in pairs if p is not None]}  # fmt: skip


def _by_arm(report: Report) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in report["runs"]:
        if run["counted"]:
            found.setdefault(run["arm"], []).append(run)
    return found


def _arm(name: str, runs: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """One arm over the studies."""
    rng, ids = np.random.default_rng(BOOTSTRAP_SEED), [r["id"] for members in runs for r in members]
    found = aggregates([np.array([r["score"] for r in m], dtype=float) for m in runs], rng, RESAMPLES)
    lost = sum(r["status"] == "collapsed" for m in runs for r in m)
    return {
        "name": name, "n": len(ids), "runs": ids,
        "mean": found["mean"].as_dict(), "median": found["median"].as_dict(), "iqm": found["IQM"].as_dict(),
        "optimality_gap": found["optimality gap"].as_dict(),
        "collapse": {**jeffreys(lost, len(ids)).as_dict(), "k": lost},
        "each": [float(np.mean([r["score"] for r in m])) for m in runs],
    }  # fmt: skip


def _pair(a: str, b: str, runs: Sequence[tuple[Sequence[Run], Sequence[Run]]]) -> dict[str, Any] | None:
    """a - b over the seeds that both have in each study; None where a study has no common seed."""
    left, right, ids = [], [], []
    for x, y in runs:
        one, other = ({r["seed"]: r for r in side} for side in (x, y))
        common = sorted(one.keys() & other.keys())
        if not common:
            return None
        left.append(np.array([one[s]["score"] for s in common], dtype=float))
        right.append(np.array([other[s]["score"] for s in common], dtype=float))
        ids += [side[s]["id"] for side in (one, other) for s in common]
    differences = [x - y for x, y in zip(left, right, strict=True)]
    mean = aggregates(differences, np.random.default_rng(BOOTSTRAP_SEED), RESAMPLES)["mean"].as_dict()
    tables = [(_lost(x), len(x), _lost(y), len(y)) for x, y in runs]
    better = improvement(left, right, np.random.default_rng(BOOTSTRAP_SEED), RESAMPLES, paired=True)
    return {
        "a": a, "b": b, "exploratory": True, "runs": ids, **mean,
        "estimator": "mean over studies of the mean paired seed difference, stratified bootstrap",
        "each": [float(d.mean()) for d in differences], "improvement": better.as_dict(),
        "p_collapse": pooled_p(tables),
    }  # fmt: skip


def _lost(runs: Sequence[Run]) -> int:
    return sum(r["status"] == "collapsed" for r in runs)


def _headline(found: Report, studies: int) -> str:
    if found["reason"]:
        return f"{studies} studies, nothing averaged over them: {found['reason']}"
    best = found["arms"][0]
    words = (
        f"Over {len(found['strata'])} studies, {best['name']} has the highest mean score, {best['mean']['value']:.3f}"
    )
    pair = next((p for p in found["pairs"] if p["a"] == best["name"]), None)
    if pair is None:
        return f"{words}. The labels of each study decide; the average is exploratory."
    interval = f" [{pair['low']:+.3f}, {pair['high']:+.3f}]" if pair["low"] is not None else ", no interval"
    words += f", {pair['value']:+.3f}{interval} over {pair['b']} (n={pair['n']} seed pairs)"
    return f"{words}. The labels of each study decide; the average is exploratory.".replace("-", "\u2212")
