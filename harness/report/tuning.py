"""Trials and re-evaluated runs of a search -> report/tuning.json and .md: default against tuned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.results import dumps, write_atomic
from harness.core.search import Dimension, SearchRecord
from harness.report import text
from harness.report.ablation_page import columns, pipe_table
from harness.report.markdown import escape
from harness.report.page import Page, Section, write_page
from harness.report.terminal import ASCII
from harness.report.tuning_plots import of_algorithm, overview
from harness.stats.effects import expected_best
from harness.stats.estimate import mean_t
from harness.stats.paired import paired_difference

Data = Mapping[str, Any]
Rows = list[tuple[str, ...]]
BEST_OF = (1, 2, 5, 10, 20, 50, 100)


def build(
    record: SearchRecord, trials: Mapping[str, Sequence[Data]], final: Sequence[Data],
    importance: Mapping[str, Data | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything of tuning.json; `trials` and `importance` by arm, `final` one row per arm of the re-evaluation."""
    return {
        "schema_version": 1,
        "name": record.name,
        "trials_each": record.trials,
        "tuning_seeds": list(record.tuning_seeds),
        "test_seeds": list(record.final.seeds),
        "sampler": record.sampler,
        "objectives": list(record.objectives),
        "algorithms": [
            _algorithm(s.arm.name, s.space, record, trials[s.arm.name], [f for f in final if f["of"] == s.arm.name])
            | {"algorithm": s.arm.algorithm, "importance": (importance or {}).get(s.arm.name)}
            for s in record.searched
        ],
    }


def _algorithm(
    name: str, space: Sequence[Dimension], record: SearchRecord, trials: Sequence[Data], final: Sequence[Data]
) -> dict[str, Any]:
    at = record.objectives.index("score")
    complete = [t for t in trials if t["state"] == "COMPLETE"]
    feasible = [t for t in complete if all(v <= 0 for v in t["constraints"].values())]
    worst = min((t["values"][at] for t in complete), default=0.0)
    usable = {t["number"] for t in feasible}
    candidates = [_candidate(f) for f in final]
    default, tuned = candidates[0], _chosen(candidates[1:])
    return {
        "arm": name,
        "space": [d.words() for d in space],
        "counts": {
            "complete": len(complete), "feasible": len(feasible),
            "collapsed": sum(bool(t["collapsed"]) for t in complete),
            "failed": sum(t["state"] == "FAIL" for t in trials),
            "pruned": dict(Counter(t["prune_reason"] for t in trials if t["state"] == "PRUNED")),
        },
        "sampled_tokens": sum(t["sampled_tokens"] or 0 for t in complete),
        "best_of": expected_best([t["values"][at] if t["number"] in usable else worst for t in complete]),
        "sensitivity": [
            {"what": t["what"], "score": t["values"][at], "collapsed": t["collapsed"]} for t in complete if t["what"]
        ],
        "default": default,
        "tuned": tuned,
        "difference": _difference(tuned, default, record.final.delta) if tuned else None,
        "candidates": candidates,
        "trials": list(trials),
    }  # fmt: skip


def _candidate(f: Data) -> dict[str, Any]:
    again = mean_t(list(f["validation"].values())).as_dict()
    known = f["tuning_score"] is not None and again["value"] is not None
    return {
        **f, "test_score": mean_t(list(f["test"].values())).as_dict(), "again": again,
        "optimism": f["tuning_score"] - again["value"] if known else None,
    }  # fmt: skip


def _chosen(candidates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best mean on the validation split of the fresh seeds, those without a collapse first."""
    known = [c for c in candidates if c["again"]["value"] is not None]
    return max(known, key=lambda c: (-c["collapsed"], c["again"]["value"]), default=None)


def _difference(tuned: Data, default: Data, delta: float) -> dict[str, Any]:
    seeds = sorted(set(tuned["test"]) & set(default["test"]), key=int)
    found = paired_difference([tuned["test"][s] for s in seeds], [default["test"][s] for s in seeds], delta)
    return {"seeds": seeds, **found.as_dict()}


def table_rows(r: Data) -> Rows:
    """Default and tuned side by side, on fresh seeds and the test split."""
    rows: Rows = [("algorithm", "trials", "collapsed", "default", "tuned", "tuned - default", "tuning score",
                   "again, fresh seeds", "optimism", "less the defaults' gap")]  # fmt: skip
    for a in r["algorithms"]:
        t, c = a["tuned"], a["counts"]
        gaps = (t["optimism"] if t else None, a["default"]["optimism"])
        chance = None if None in gaps else gaps[0] - gaps[1]
        failed = f" ({c['failed']} failed)" if c["failed"] else ""
        failed += "".join(f" + {n} pruned ({reason})" for reason, n in c["pruned"].items())
        rows.append((
            a["arm"], f"{c['complete']}{failed}", f"{c['collapsed']}", text.value_interval(a["default"]["test_score"]),
            text.value_interval(t["test_score"]) if t else "no feasible trial but the defaults",
            text.value_interval(a["difference"], "signed") if a["difference"] else "n/a",
            text.score(t["tuning_score"]) if t else "n/a", text.score(t["again"]["value"]) if t else "n/a",
            text.signed(t["optimism"]) if t else "n/a", text.signed(chance) if chance is not None else "n/a",
        ))  # fmt: skip
    return rows


def best_of_rows(r: Data) -> Rows:
    """Expected best of k trials on the tuning seeds."""
    most = max((len(a["best_of"]) for a in r["algorithms"]), default=0)
    ks = [k for k in BEST_OF if k <= most]
    rows: Rows = [("algorithm", *(f"best of {k}" for k in ks))]
    for a in r["algorithms"]:
        best = a["best_of"]
        rows.append((a["arm"], *(text.score(best[k - 1]) if k <= len(best) else "n/a" for k in ks)))
    return rows


def sensitivity_rows(r: Data) -> Rows:
    """The defaults at a third, once and three times the learning rate."""
    names = list(dict.fromkeys(s["what"] for a in r["algorithms"] for s in a["sensitivity"]))
    rows: Rows = [("algorithm", *names)]
    for a in r["algorithms"]:
        of = {s["what"]: s for s in a["sensitivity"]}
        cells = [f"{text.score(of[n]['score'])}{' collapsed' if of[n]['collapsed'] else ''}" if n in of else "n/a"
                 for n in names]  # fmt: skip
        rows.append((a["arm"], *cells))
    return rows


def trial_table(a: Data, objectives: Sequence[str]) -> Rows:
    """Every trial of one algorithm."""
    names = [*(dict.fromkeys(p for t in a["trials"] for p in t["params"]))]
    rows: Rows = [("trial", "outcome", *objectives, *names)]
    for t in a["trials"]:
        values = [text.number(v) for v in t["values"]] if t["values"] else ["n/a"] * len(objectives)
        outcome = t["outcome"] or t["reason"] or t["state"].lower()
        what = f" ({t['what']})" if t["what"] else ""
        params = [t["params"].get(n, "") for n in names]
        rows.append((f"{t['number']}{what}", outcome, *values,
                     *(f"{p:.4g}" if isinstance(p, float) else str(p) for p in params)))  # fmt: skip
    return rows


def markdown(r: Data) -> str:
    """The page as Markdown."""
    lines = [
        f"# Tuning: {escape(r['name'])}", "", escape(headline(r)), "", lead(r), "",
        "## Default and tuned", "", OPTIMISM, "", pipe_table(table_rows(r)), "",
        "## Score against budget", "", "Expected best of k trials, tuning seeds, validation split; a trial that "
        "violates a constraint counts as the worst score.", "", pipe_table(best_of_rows(r)), "",
        "## Learning rate", "", "The defaults at other learning rates, tuning seeds.", "",
        pipe_table(sensitivity_rows(r)), "",
    ]  # fmt: skip
    if rows := importance_rows(r):
        lines += ["## Importance", "", IMPORTANCE, "", pipe_table(rows), ""]
    for a in r["algorithms"]:
        lines += [f"## {escape(a['arm'])}", "", f"Space: {escape('; '.join(a['space']))}.", ""]
        if a["tuned"]:
            chosen = ", ".join(f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}"
                               for k, v in a["tuned"]["params"].items())  # fmt: skip
            lines += [f"Tuned (trial {a['tuned']['trial']}): {escape(chosen)}.", ""]
        lines += [pipe_table(trial_table(a, r["objectives"])), ""]
    lines.append(COLLAPSED)
    return "\n".join(lines) + "\n"


def terminal(r: Data) -> str:
    """Default and tuned, for a terminal."""
    return "\n\n".join(columns(rows) for rows in (table_rows(r), sensitivity_rows(r))).translate(ASCII)


def headline(r: Data) -> str:
    """Whether tuning changed who is ahead, by rule."""
    known = [a for a in r["algorithms"] if a["default"]["test_score"]["value"] is not None]
    if not known:
        return "No configuration has been run on fresh seeds yet."
    default = max(known, key=lambda a: a["default"]["test_score"]["value"])
    after = {a["arm"]: (a["tuned"] or a["default"])["test_score"]["value"] for a in known}
    tuned = max(after, key=lambda name: after[name] if after[name] is not None else -1.0)
    sure = [a["arm"] for a in known if a["difference"] and a["difference"]["low"] is not None
            and a["difference"]["low"] > 0]  # fmt: skip
    best = text.score(default["default"]["test_score"]["value"])
    first = f"At the defaults {default['arm']} has the highest mean ({best})"
    same = "and so it has after tuning" if tuned == default["arm"] else f"after tuning {tuned}"
    gain = f"Tuning helps beyond chance for {', '.join(sure)}." if sure else "For none does tuning help beyond chance."
    return f"{first}, {same} ({text.score(after[tuned])}). {gain}"


def lead(r: Data) -> str:
    """The budget, the same for each."""
    return (
        f"The same budget for each: {r['trials_each']} trials x {len(r['tuning_seeds'])} tuning seeds "
        f"({', '.join(map(str, r['tuning_seeds']))}), sampler {r['sampler']}; "
        f"re-run on {len(r['test_seeds'])} fresh seeds ({', '.join(map(str, r['test_seeds']))})."
    )


OPTIMISM = (
    "Test split, fresh seeds, Student-t intervals, paired differences. The tuned configuration is the candidate of the "
    "highest mean on the validation split of the fresh seeds. Optimism = tuning score - the same score on fresh seeds. "
    "It holds two things: what choosing the luckiest trial adds, and how the tuning seeds differ from the fresh ones; "
    "the defaults were not chosen, so their gap is the second alone, and the last column takes it off."
)


def importance_rows(r: Data) -> Rows:
    """Both evaluators, where there are trials enough."""
    rows: Rows = [("algorithm", "trials", "dimension", "fANOVA", "PED-ANOVA")]
    for a in r["algorithms"]:
        found = a["importance"]
        if not found:
            continue
        shares = [found[name]["shares"] for name in ("fANOVA", "PED-ANOVA")]
        for path in dict.fromkeys([*shares[0], *shares[1]]):
            rows.append((a["arm"], str(found["n"]), path, *(text.score(s[path]["value"]) if path in s else "n/a"
                                                            for s in shares)))  # fmt: skip
        rows.append((a["arm"], str(found["n"]), "order of the first two", *(
            "stable" if found[name]["stable"] else f"not stable ({found[name]['flips']:.0%} of resamples differ)"
            for name in ("fANOVA", "PED-ANOVA"))))  # fmt: skip
    return rows if len(rows) > 1 else []


IMPORTANCE = (
    "Shares of the score's variance over the trials that were asked, with a bootstrap over trials. Descriptive: the "
    "sampler chose the points, and below 100 trials the order moves; no evidence about components (harness ablate is)."
)


def page(r: Data) -> Page:
    """The HTML page."""
    sections = [
        Section(title="Default and tuned", words=OPTIMISM, rows=table_rows(r), figures=overview(r)),
        Section(title="Score against budget", words="Expected best of k trials on the tuning seeds; a trial that "
                "violates a constraint counts as the worst score.", rows=best_of_rows(r)),
        Section(title="Learning rate", words="The defaults at other learning rates, tuning seeds.",
                rows=sensitivity_rows(r)),
        Section(title="Importance", words=IMPORTANCE, rows=importance_rows(r)),
    ]  # fmt: skip
    for a in r["algorithms"]:
        chosen = ""
        if a["tuned"]:
            values = (
                f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in a["tuned"]["params"].items()
            )
            chosen = f" Tuned (trial {a['tuned']['trial']}): {', '.join(values)}."
        sections.append(Section(title=a["arm"], words=f"Space: {'; '.join(a['space'])}.{chosen}",
                                figures=of_algorithm(r, a)))  # fmt: skip
        sections.append(Section(title=f"{a['arm']}: trials", rows=trial_table(a, r["objectives"])))
    return Page(title=f"Tuning: {r['name']}", headline=headline(r), lead=lead(r), sections=sections, notes=(COLLAPSED,))


COLLAPSED = (
    "A collapsed trial is complete: it keeps its real score and violates the constraint `collapse`, so it can never be "
    "chosen and the sampler still learns from it."
)


def write_tuning(folder: Path, data: Data) -> dict[str, Path]:
    """Writes report/tuning.json, .md, .html and figures; all are rendered from what the JSON holds."""
    source = dumps(data)
    known = json.loads(source)
    files = {"tuning": ("tuning.json", source + "\n"), "page": ("tuning.md", markdown(known))}
    for name, content in files.values():
        write_atomic(folder / "report" / name, content)
    paths = {kind: folder / "report" / name for kind, (name, _) in files.items()}
    return {**paths, **write_page(page(known), folder / "report", "tuning")}
