"""The rules of honest reporting, checked on the data of every report before it is written.

R10, R14 and R15 are also properties of the tables and figures, which draw from the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.core.errors import HarnessError

STATUSES = ("completed", "collapsed", "no_learning", "infra_failed", "unfinished")
Report = Mapping[str, Any]


class ReportRuleError(HarnessError):
    """A report that would break a rule of honest reporting; it is not written."""

    def __init__(self, rule: str, what: str) -> None:
        self.rule = rule
        super().__init__(f"rule {rule}: {what}\n  the report is not written; this is a defect of it, please report it")


def check_rules(report: Report) -> None:
    """Raises `ReportRuleError` with the name of the first rule that is broken."""
    for rule, check in RULES.items():
        for what in check(report):
            raise ReportRuleError(rule, what)


def every_run_counts(report: Report) -> Iterator[str]:
    """R1: started = completed + collapsed + no_learning + infra_failed + unfinished, and every run is listed."""
    tally = report["tally"]
    if tally["started"] != sum(tally[s] for s in STATUSES) or tally["started"] != len(report["runs"]):
        yield f"runs are missing from the tally: {tally}"
    if tally["planned"] != tally["started"] + tally["missing"] or tally["missing"] != len(report["missing"]):
        yield f"planned runs are missing from the tally: {tally}"
    split = {s: sum(tally["by_validity"][s].values()) for s in STATUSES if s != "unfinished"}
    if any(split[s] != tally[s] for s in split):
        yield f"a status is not split by validity: {tally}"


def collapsed_runs_keep_their_score(report: Report) -> Iterator[str]:
    """R2: a collapsed run has a score and enters its arm's mean, never by its best checkpoint."""
    arms = {a["name"]: a for a in report["arms"]}
    for r in report["runs"]:
        if r["status"] != "collapsed" or r["validity"] == "INVALID":
            continue
        if r["score"] is None or r["id"] not in arms[r["arm"]]["score"]["runs"]:
            yield f"{r['id']} collapsed and is not in the mean of {r['arm']}"
    for a in report["arms"]:
        mean = sum(s["score"] for s in a["seeds"]) / len(a["seeds"]) if a["seeds"] else None
        if mean is not None and abs(a["score"]["value"] - mean) > 1e-9:
            yield f"the mean of {a['name']} is not that of its listed seeds"


def numbers_have_n_and_interval(report: Report) -> Iterator[str]:
    """R3: whatever has an estimator has an n, and an interval or the reason why there is none."""
    for path, e in _estimates({k: report[k] for k in ("arms", "comparisons", "all_pairs", "base")}):
        if e.get("value") is not None and (e.get("n") is None or (e.get("low") is None and not e.get("note"))):
            yield f"{path} has no n, or neither an interval nor a reason"
        if e.get("low") is not None and e["n"] < 3 and "share" not in e["estimator"] and "rate" not in e["estimator"]:
            yield f"{path} has an interval from n = {e['n']}"


def _estimates(data: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(data, Mapping):
        if "estimator" in data and "value" in data:
            yield path, data
        for key, value in data.items():
            yield from _estimates(value, f"{path}.{key}".strip("."))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _estimates(value, f"{path}[{index}]")


def _pairs(report: Report) -> list[Mapping[str, Any]]:
    return [*report["comparisons"], *report["all_pairs"]]


def underpowered_is_said(report: Report) -> Iterator[str]:
    """R4: an open comparison whose detectable difference exceeds delta is called underpowered."""
    delta = report["study"]["delta"]
    for c in _pairs(report):
        if c["label"] == "inconclusive" and not c["collapse"] and c["mde"] is not None and c["mde"] > delta:
            significant = c["p_adjusted"] is not None and c["p_adjusted"] < c["alpha"]
            if not significant:
                yield f"{c['a']} - {c['b']} is called inconclusive with a detectable difference of {c['mde']:.3f}"


def equivalence_needs_tost(report: Report) -> Iterator[str]:
    """R5: "equivalent" only through TOST."""
    for c in _pairs(report):
        if c["label"] == "equivalent" and not (c["p_tost_adjusted"] is not None and c["p_tost_adjusted"] < c["alpha"]):
            yield f"{c['a']} - {c['b']} is called equivalent without a TOST at {c['alpha']}"


def one_family(report: Report) -> Iterator[str]:
    """R6: all comparisons of page one are corrected together, and a winner is one after the correction."""
    size = sum(c["p_t"] is not None for c in report["comparisons"])
    for c in report["comparisons"]:
        if c["family"] != size:
            yield f"{c['a']} - {c['b']} is corrected for {c['family']} of {size} comparisons"
    for c in _pairs(report):
        if c["label"] in ("A>B", "B>A") and not (c["p_adjusted"] is not None and c["p_adjusted"] < c["alpha"]):
            yield f"{c['a']} - {c['b']} has a winner with p = {c['p_adjusted']}"


def bold_is_the_best_set(report: Report) -> Iterator[str]:
    """R7: the arms in bold are those not shown to be below the best mean of their group."""
    means = {a["name"]: a["score"]["value"] for a in report["arms"]}
    for g in report["groups"]:
        if not g["best_set"]:
            continue
        best = max((n for n in g["arms"] if means[n] is not None), key=lambda n: means[n])
        if means[g["best_set"][0]] != means[best]:
            yield f"{g['best_set'][0]} is in bold before {best}, whose mean is higher"
        below = {c["b"] for c in report["all_pairs"] if c["a"] == best and c["label"] == "A>B"}
        below |= {c["a"] for c in report["all_pairs"] if c["b"] == best and c["label"] == "B>A"}
        if below & set(g["best_set"]):
            yield f"{sorted(below & set(g['best_set']))} are in bold and below {best}"


def exploratory_is_tagged(report: Report) -> Iterator[str]:
    """R8: all pairs are exploratory, and page one too where the study departs from its declaration."""
    if any(not c["exploratory"] for c in report["all_pairs"]):
        yield "a comparison of all pairs is not tagged exploratory"
    if report["declaration"]["deviations"] and any(not c["exploratory"] for c in report["comparisons"]):
        yield "the study departs from its declaration, and a comparison is not tagged exploratory"


def iqm_is_never_alone(report: Report) -> Iterator[str]:
    """R9: an IQM stands beside the mean and the collapse count of the same runs."""
    for a in report["arms"]:
        if a["iqm"]["value"] is not None and (a["score"]["value"] is None or "k" not in a["collapse"]):
            yield f"{a['name']} has an IQM without mean and collapse count"


def relative_with_absolute(report: Report) -> Iterator[str]:
    """R10: a share of the best score stands with the score it is."""
    for t in report["thresholds"]:
        if t.get("score") is None:
            yield f"the threshold of {t['share']} has no absolute score"


def tuned_beside_default(report: Report) -> Iterator[str]:
    """R11: an arm with tuned settings stands beside its default, with its number of trials; else the page says so."""
    if not any(c.startswith("Tuning:") for c in report["caveats"]):
        yield "the page does not say how the arms were tuned"
    for a in (report["tuning"] or {"arms": []})["arms"]:
        if a["default"]["value"] is None or not isinstance(a["trials"], int):
            yield f"the tuned {a['arm']} stands without its default or its number of trials"


def seeds_are_fixed(report: Report) -> Iterator[str]:
    """R12: the seed of every resampling is part of the report."""
    if not isinstance(report["provenance"].get("bootstrap_seed"), int):
        yield "the seed of the bootstrap is not recorded"


def cost_counts_everything(report: Report) -> Iterator[str]:
    """R13: the cost of the study is that of all its runs, failed and unfinished ones included."""
    if report["tally"]["sampled_tokens"] != sum(r["sampled_tokens"] for r in report["runs"]):
        yield "the sampled tokens of the study are not those of all its runs"


def toys_are_marked(report: Report) -> Iterator[str]:
    """R14: results of embedded models carry the watermark."""
    study = report["study"]
    if study["toy"] and not (study["watermark"] and any(c.startswith("Scale:") for c in report["caveats"])):
        yield f"{study['model']} is an embedded model, and its report has no watermark"


def scores_are_held_out(report: Report) -> Iterator[str]:
    """R15: what is called score is held out and correct answers; a shaped reward is never called so."""
    if report["curves"]["split"] not in ("validation", "test"):
        yield f"the learning curves are of the {report['curves']['split']} split"
    for p in report["panels"]:
        if p["column"].startswith("reward/") and "score" in p["title"].lower():
            yield f"panel {p['title']} shows {p['column']}"


RULES = {
    "R1": every_run_counts, "R2": collapsed_runs_keep_their_score, "R3": numbers_have_n_and_interval,
    "R4": underpowered_is_said, "R5": equivalence_needs_tost, "R6": one_family, "R7": bold_is_the_best_set,
    "R8": exploratory_is_tagged, "R9": iqm_is_never_alone, "R10": relative_with_absolute, "R11": tuned_beside_default,
    "R12": seeds_are_fixed, "R13": cost_counts_everything, "R14": toys_are_marked, "R15": scores_are_held_out,
}  # fmt: skip
