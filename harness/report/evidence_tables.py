"""Tables of what stands behind the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.report import text
from harness.report.collect import PHASES
from harness.report.lengths import NOISES
from harness.report.tables import Notes, Table, arm_cell, by_group, cell, make_table, point


def use_when(report: Mapping[str, Any]) -> Table:
    """Condition -> arms."""
    rows = [[cell(f"if {u['condition']}", css="wrap"), cell(", ".join(u["arms"]) or "nothing to say", css="wrap"),
             cell(u["basis"], css="wrap")] for u in report["use_when"]]  # fmt: skip
    return make_table(("Use it", "Arms", "Because"), [("", rows)])


def aggregates(report: Mapping[str, Any]) -> Table:
    """Aggregates over runs, risk and whole-curve numbers; the IQM never without mean and collapses."""
    notes, groups = Notes(), []
    for g, arms in by_group(report):
        rows = []
        for a in arms:
            mean = a["two_part"] or a["score"]
            rows.append([
                arm_cell(a), notes.value(mean, "score"), notes.value(a["gain"], "signed"),
                cell(f"{a['collapse']['k']}/{a['collapse']['n']}", text.interval(a["collapse"], "fraction")),
                *(point(a[k], notes) for k in ("iqm", "median", "optimality_gap", "tail_risk")),
                notes.value(a["last_evals"], "score"), notes.value(a["drawdown"], "score"),
                notes.value(a["asymptote"], "score"),
            ])  # fmt: skip
        groups.append((g["title"], rows))
    columns = ("Arm", "Mean, all runs", "Gain over base", "Collapsed", "IQM", "Median", "Gap to 1", "Worst quarter",
               "Mean of last 3 evaluations", "Largest fall", "Asymptote of a fit")  # fmt: skip
    return make_table(columns, groups, notes.listed())


def phases(report: Mapping[str, Any]) -> Table:
    """Where the time of a step goes; empty where nothing was measured."""
    names = [n for n in PHASES if any(a["phases"][n]["value"] is not None for a in report["arms"])]
    notes, groups = Notes(), []
    for g, arms in by_group(report) if names else ():
        rows = []
        for a in arms:
            known = [a["phases"][n]["value"] for n in names]
            total = sum(v for v in known if v is not None)
            cells = [notes.value(a["phases"][n], "seconds") for n in names]
            shares = ["" if v is None or not total else text.fraction(v / total) for v in known]
            rows.append([arm_cell(a), *({**c, "t": f"{c['t']} ({s})"} if s else c
                                        for c, s in zip(cells, shares, strict=True))])  # fmt: skip
        groups.append((g["title"], rows))
    return make_table(("Arm", *(n.capitalize() for n in names)), groups, notes.listed())


def lengths(report: Mapping[str, Any]) -> Table:
    """How the noise of the ratio changes with response length; empty where the step log does not say."""
    notes, groups, found = Notes(), [], report["ratio_by_length"]
    for g, arms in by_group(report):
        rows = []
        for a in (a for a in arms if a["name"] in found):
            data = found[a["name"]]
            seen = ", ".join(f"{b['upper'] // 2 + 1}-{b['upper']}" for b in data["bins"])
            rows.append([arm_cell(a), *(notes.value(data["slopes"][name], "signed") for name in NOISES),
                         cell(seen, css="wrap"), cell(text.exact(sum(b["rows"] for b in data["bins"])))])  # fmt: skip
        groups.append((g["title"], rows))
    columns = ("Arm", *(f"Slope, {words}" for words in NOISES.values()), "Lengths, tokens", "Rows")
    return make_table(columns, groups, notes.listed())


def tuned(report: Mapping[str, Any]) -> Table:
    """Default and tuned side by side, with what the search spent; empty where the study is no re-evaluation."""
    found = report["tuning"]
    rows = [[
        cell(a["arm"]), cell(text.value_interval(a["default"])),
        cell(text.value_interval(a["tuned"]) if a["tuned"] else "no feasible trial but the defaults"),
        cell(text.value_interval(a["difference"], "signed") if a["difference"] else "n/a"),
        cell(str(a["trials"]), f"{a['collapsed']} collapsed"),
        cell(text.score(a["best_of"][-1]) if a["best_of"] else "n/a"),
    ] for a in found["arms"]] if found else []  # fmt: skip
    columns = ("Algorithm", "Default", "Tuned", "Tuned \u2212 default", "Trials", "Best of all trials")
    return make_table(columns, [("", rows)])


def tests(report: Mapping[str, Any]) -> Table:
    """What else is known about every pair of page one."""
    notes, rows = Notes(), []
    for c in report["comparisons"]:
        k, better, auc = c["collapse_test"], c["improvement"], c["auc"]
        rows.append([
            cell(f"{c['a']} \u2212 {c['b']}"),
            point(better, notes) if better else notes.missing("no common seed"),
            notes.value(auc, "signed") if auc else notes.missing("no common curve"),
            cell(f"{k['k_a']}/{k['n_a']} against {k['k_b']}/{k['n_b']}"),
            cell(text.p_value(k["p_barnard"])), cell(text.p_value(k["p_mcnemar"])),
            cell(text.p_value(k["p_logrank_paired"])),
            cell(text.interval({"value": 0, "n": c["n"], "low": c["simultaneous"][0], "high": c["simultaneous"][1]},
                               "signed") if c["simultaneous"] else "n/a"),
            cell(text.exact(c["seeds_needed"]), f"{text.exact(c['seeds_needed_tost'])} for equivalence"),
        ])  # fmt: skip
    columns = ("Pair", "P(better)", "Whole curve (AUC)", "Collapsed", "p, Barnard", "p, McNemar",
               "p, log-rank in pairs", "Difference, all pairs at once", "Seeds needed")  # fmt: skip
    return make_table(columns, [("", rows)], notes.listed())
