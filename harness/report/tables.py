"""The tables of the report as text cells, once for HTML and Markdown. A cell is {t: text, s: small print, c: class}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.report import text

GOAL = 0.9  # the share of the best score whose cost stands on page one
Cell = dict[str, Any]
Table = dict[str, Any]


def cell(main: str, small: str = "", css: str = "", arm: str = "") -> Cell:
    """One cell."""
    return {"t": main, "s": small, "c": css, "arm": arm}


class Notes:
    """Reasons for `n/a`, lettered in order of appearance."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def value(self, estimate: Mapping[str, Any], kind: str) -> Cell:
        """Mean and interval, or `n/a` with its reason as a note."""
        if estimate["value"] is None:
            return self.missing(str(estimate.get("note") or "not recorded"))
        return cell(text.FORMATS[kind](estimate["value"]), text.interval(estimate, kind))

    def missing(self, reason: str) -> Cell:
        """`n/a` and the letter of its reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return cell(f"n/a {_letter(self.reasons.index(reason))}", css="na")

    def listed(self) -> list[str]:
        """`a  reason` lines."""
        return [f"{_letter(i)} {reason}" for i, reason in enumerate(self.reasons)]


def _letter(index: int) -> str:
    return f"({'abcdefghijklmnopqrstuvwxyz'[index % 26]})"


def make_table(
    columns: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]], notes: Sequence[str] = ()
) -> Table:
    """A table of titled groups of rows; groups without rows are left out."""
    return {
        "columns": list(columns),
        "groups": [{"title": t, "rows": rows} for t, rows in groups if rows],
        "notes": list(notes),
    }


def by_group(report: Mapping[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The groups with their arms."""
    arms = {a["name"]: a for a in report["arms"]}
    return [(g, [arms[n] for n in g["arms"]]) for g in report["groups"]]


def arm_cell(arm: Mapping[str, Any], *, full: bool = False) -> Cell:
    """The arm's name; `full` adds what it changes in its preset."""
    return cell(arm["name"], deviations(arm) if full else "", "arm", arm=arm["name"])


def deviations(arm: Mapping[str, Any]) -> str:
    """At most three deviations; fields of a part that was exchanged as a whole are left to the matrix below."""
    found = [d.replace("->", "\u2192") for d in arm["deviations"]]
    paths = {d.split(":")[0] for d in found}
    found = [d for d in found if d.split(":")[0].rpartition(".")[0] not in paths]
    return "; ".join(found[:3]) + (f"; {len(found) - 3} more" if len(found) > 3 else "")


def verdict(report: Mapping[str, Any]) -> Table:
    """Score, every seed, difference from the reference with its label, collapses, and what it costs."""
    pairs = {c["a"]: c for c in report["comparisons"]}
    notes, groups, goal = Notes(), [], next((t for t in report["thresholds"] if t["share"] == GOAL), None)
    for g, arms in by_group(report):
        rows = [[
            {**arm_cell(a, full=True), "c": "arm best" if a["name"] in g["best_set"] else "arm"},
            _score(a, notes),
            cell(seeds(a), css="seeds", arm=a["name"]),
            _difference(pairs.get(a["name"]), a, g, notes),
            _label(pairs.get(a["name"]), g),
            _better(pairs.get(a["name"]), notes),
            cell(f"{a['collapse']['k']}/{a['collapse']['n']}", text.interval(a["collapse"], "fraction")),
            cell(f"{a['statuses']['no_learning']}/{a['n']}"),
            _reached(goal, a["name"]),
            notes.value(a["length"], "number"), notes.value(a["memory_mib"], "memory"),
            notes.value(a["seconds_per_million"], "number"), cell(str(a["n"])),
        ] for a in arms]  # fmt: skip
        title = g["title"] if g["ranked"] else f"{g['title']} (listed, not ranked)"
        groups.append((title, rows))
    best = (
        f"Tokens to {text.score(goal['score'])}, {GOAL:.0%} of best".replace("%", " %") if goal else "Tokens to score"
    )
    columns = ("Arm", "Score [95 %]", "Every seed", "Difference from reference", "Label", "P(better)", "Collapsed",
               "No learning", best, "Response length", "Peak memory",
               f"{report['study']['clock']} per 1M tokens", "n")  # fmt: skip
    return make_table(columns, groups, notes.listed())


def _better(c: Mapping[str, Any] | None, notes: Notes) -> Cell:
    if c is None:
        return cell("", css="quiet")
    found = c["improvement"]
    return point(found, notes, "number") if found else notes.missing("no common seed")


def point(e: Mapping[str, Any], notes: Notes, kind: str = "score") -> Cell:
    """A value with its interval, or with n where the table's text says why there is none."""
    if e["value"] is None or e["low"] is not None:
        return notes.value(e, kind)
    return cell(text.FORMATS[kind](e["value"]), f"n={e['n']}")


def _reached(goal: Mapping[str, Any] | None, arm: str) -> Cell:
    found = goal["arms"].get(arm, {}).get("sampled_tokens") if goal else None
    if found is None:
        return cell("n/a", css="na")
    mean = f"mean {text.value_interval(found, 'count')}" if found["low"] is not None else ""
    return cell(text.threshold_words(found), mean)


def _score(arm: Mapping[str, Any], notes: Notes) -> Cell:
    found, left = notes.value(arm["score"], "score"), arm["score_survivors"]
    if left is None or arm["score"]["low"] is not None:
        return found
    return {**found, "s": f"survivors {text.value_interval(left)}" if left["value"] is not None else "no run survived"}


def seeds(arm: Mapping[str, Any]) -> str:
    """All scores in the order of the seeds; a dagger marks a collapsed run."""
    return (
        " ".join(text.score(s["score"]) + ("\u2020" if s["status"] == "collapsed" else "") for s in arm["seeds"])
        or "none"
    )


def _difference(c: Mapping[str, Any] | None, arm: Mapping[str, Any], group: Mapping[str, Any], notes: Notes) -> Cell:
    if arm["name"] == group["reference"]:
        return cell("reference", css="quiet")
    if c is None:
        reason = (
            "no finished run to compare"
            if group["reference"]
            else "the only arm of its bracket: nothing it may be ranked against"
        )
        return notes.missing(reason)
    fewer = f" n={c['n']}" if c["low"] is not None and c["n"] < arm["n"] else ""  # seeds that both arms have
    return cell(text.signed(c["value"]), text.interval(c, "signed") + fewer)


def _label(c: Mapping[str, Any] | None, group: Mapping[str, Any]) -> Cell:
    if c is None:
        return cell("", css="quiet")
    small = text.test_words(c) if c["p_adjusted"] is not None else ""
    css = {"A>B": "good", "B>A": "bad", "equivalent": "same"}.get(c["label"], "open")
    return cell(text.label_words(c), small, f"label {css if group['ranked'] else 'open'}")


def efficiency(report: Mapping[str, Any]) -> Table:
    """Budget to reach shares of the best score: sampled tokens, steps below."""
    shares = report["thresholds"]
    columns = ["Arm", *(f"{t['share']:.0%} of best = {text.score(t['score'])}".replace("%", " %") for t in shares)]
    groups = []
    for g, arms in by_group(report):
        rows = []
        for a in arms:
            cells = [arm_cell(a)]
            for t in shares:
                found = t["arms"].get(a["name"], {})
                steps = found.get("step")
                cells.append(cell(
                    text.threshold_words(found.get("sampled_tokens")),
                    f"{text.threshold_words(steps).split(' (')[0]} steps" if steps else "",
                ))  # fmt: skip
            rows.append(cells)
        groups.append((g["title"], rows))
    return make_table(columns, groups)


def behaviour(report: Mapping[str, Any]) -> Table:
    """Training reward, signal, length, clipping, entropy, drift, critic."""
    notes, groups = Notes(), []
    for g, arms in by_group(report):
        rows = [[
            arm_cell(a),
            notes.value(a["reward_end"], "number"),
            notes.value(a["zero_var"], "fraction"),
            notes.value(a["length"], "number"),
            notes.value(a["truncated"], "fraction"),
            notes.value(a["entropy_end"], "number"),
            notes.value(a["kl_old"], "number"),
            notes.value(a["clip_tok_any"], "fraction"),
            notes.value(a["explained_var"], "number"),
        ] for a in arms]  # fmt: skip
        groups.append((g["title"], rows))
    columns = ("Arm", "Task reward at end", "Groups without variance", "Response length, tokens", "Truncated",
               "Entropy at end, nats/token", "KL(old), nats/token", "Clipped tokens", "Explained variance")  # fmt: skip
    return make_table(columns, groups, notes.listed())


STATUS_WORDS = {
    "completed": "completed", "collapsed": "collapsed", "no_learning": "no learning", "infra_failed": "failed",
    "unfinished": "unfinished", "missing": "not started",
}  # fmt: skip


def statuses(arm: Mapping[str, Any]) -> str:
    """`3 completed, 1 collapsed`."""
    found = [f"{arm['statuses'][k]} {words}" for k, words in STATUS_WORDS.items() if arm["statuses"][k]]
    found += [f"{len(arm['invalid'])} INVALID"] if arm["invalid"] else []
    return ", ".join(found) or "none"


def budget(report: Mapping[str, Any]) -> Table:
    """What each arm spent, per run."""
    notes, groups = Notes(), []
    for g, arms in by_group(report):
        rows = []
        for a in arms:
            sampled, trained = a["sampled_tokens"]["value"], a["trained_tokens"]["value"]
            share = (
                cell(text.fraction(trained / sampled))
                if sampled and trained is not None
                else notes.missing("no finished run")
            )
            means = [cell(text.count(a[k]["value"])) if a[k]["value"] is not None else notes.missing("no finished run")
                     for k in ("sampled_tokens", "trained_tokens")]  # fmt: skip
            rest = [cell(text.exact(a[k]["value"])) if a[k]["value"] is not None else notes.missing("no finished run")
                    for k in ("steps", "optimizer_steps", "prompts")]  # fmt: skip
            cost = [notes.value(a[k], "seconds") for k in ("wallclock_s", "step_s")] + [
                notes.value(a["memory_mib"], "memory")
            ]
            rows.append([arm_cell(a), *means, share, *rest, *cost, cell(statuses(a), css="wrap")])
        groups.append((g["title"], rows))
    columns = (
        "Arm",
        "Sampled tokens",
        "Trained tokens",
        "Trained / sampled",
        "Steps",
        "Optimizer steps",
        "Prompts",
        "Wall-clock",
        "Per step",
        "Memory above imports",
        "Runs",
    )
    return make_table(columns, groups, notes.listed())


def pairs(report: Mapping[str, Any]) -> Table:
    """All pairs inside each ranked group."""
    groups = []
    for g in report["groups"]:
        rows = [
            [cell(f"{c['a']} \u2212 {c['b']}"), cell(text.signed(c["value"]), text.interval(c, "signed")),
             cell(text.label_words(c)),
             cell(text.p_value(c["p_adjusted"])), cell(text.p_value(c["p_sign_flip"])),
             cell(text.p_value(c["p_tost_adjusted"])),
             cell(text.score(c["mde"])), cell("n/a" if c["rho"] is None else text.number(c["rho"])), cell(str(c["n"]))]
            for c in report["all_pairs"] if (c["bracket"], c["roster"]) == (g["bracket"], g["roster"])
        ]  # fmt: skip
        groups.append((g["title"], rows))
    columns = (
        "Pair",
        "Difference [95 %]",
        "Label",
        "p, corrected",
        "p, sign flip",
        "p, TOST",
        "Detectable",
        "Seed correlation",
        "n",
    )
    return make_table(columns, groups)


def noise(report: Mapping[str, Any]) -> Table:
    """Where the spread comes from; the columns on cold starts only where there are several."""
    several = any(n["starts"]["clusters"] > 1 for n in report["noise"])
    rows = []
    for n in report["noise"]:
        starts = n["starts"]
        more = [
            cell(text.score(starts["sd_within"])),
            cell(text.score(starts["sd_between"])),
            cell(str(starts["clusters"])),
        ]
        rows.append([
            cell(n["arm"]), cell(text.score(n["seed_sd"])), cell(text.score(n["eval_se"])),
            cell(text.number(n["ratio"])),
            *(more if several else []), cell(str(n["n"])),
        ])  # fmt: skip
    starts_columns = ("SD within starts", "SD between starts", "Starts") if several else ()
    return make_table(("Arm", "SD over seeds", "Evaluation SE", "SE / SD", *starts_columns, "n"), [("", rows)])


def ranks(report: Mapping[str, Any]) -> list[Table]:
    """Rank distributions, a table per group."""
    found = []
    for r in report["ranks"]:
        columns = ["Arm", "P(best)", *(f"Rank {i + 1}" for i in range(1, len(r["arms"])))]
        rows = [[cell(a["arm"]), *(cell(f"{p:.2f}") for p in a["probability"])] for a in r["arms"]]
        found.append(
            make_table(
                columns,
                [("", rows)],
                [
                    f"{r['estimator']}; n = {r['n']} seed pairs. "
                    "Over fewer than twenty, bootstrap probabilities are too extreme: the labels decide"
                ],
            )
        )
    return found


def runs(report: Mapping[str, Any]) -> Table:
    """Every run of the study, also those that do not count."""
    rows = []
    for r in report["runs"]:
        why = r["why_not_counted"] or ("" if r["score_source"].startswith("test split") else r["score_source"])
        detail = "; ".join(x for x in (r["error"] or "", *r["validity_reasons"], why) if x)
        events = ", ".join(f"{e['type']} ({e['severity']}, step {e['onset_step']})" for e in r["events"])
        status = STATUS_WORDS[r["status"]]
        rows.append([
            cell(r["arm"]), cell(str(r["seed"])), cell(status, css=f"st-{r['status']}"), cell(r["validity"] or "n/a"),
            cell(text.score(r["score"])), cell(text.score(r["base_score"])), cell(text.exact(r["steps"])),
            cell(text.count(r["sampled_tokens"])),
            cell(text.seconds(r["wallclock_s"])), cell(events or "none", css="wrap"), cell(r["id"], detail, "mono"),
        ])  # fmt: skip
    rows += [[cell(m["arm"]), cell(str(m["seed"])), cell("not started", css="st-missing"), *([cell("n/a")] * 6),
              cell("none"), cell("")]
             for m in report["missing"]]  # fmt: skip
    columns = ("Arm", "Seed", "Status", "Validity", "Score", "Base", "Steps", "Sampled", "Time", "Events", "Run")
    return make_table(columns, [("", rows)])


def ledger(report: Mapping[str, Any]) -> Table:
    """Runs that did not end well, and every event."""
    rows = []
    for r in report["runs"]:
        for e in r["events"]:
            at = f"{e['onset_step'] / r['steps']:.0%}".replace("%", " %") if r["steps"] else "n/a"
            rows.append([cell(r["arm"]), cell(str(r["seed"])), cell(e["type"]), cell(e["severity"]),
                         cell(str(e["onset_step"]), f"{at} of the run"),
                         cell(STATUS_WORDS[r["status"]]), cell(text.score(r["score"]))])  # fmt: skip
        if not r["events"] and r["status"] in ("collapsed", "no_learning"):
            rows.append(
                [
                    cell(r["arm"]),
                    cell(str(r["seed"])),
                    cell("none recorded"),
                    cell(""),
                    cell(""),
                    cell(STATUS_WORDS[r["status"]]),
                    cell(text.score(r["score"])),
                ]
            )
    return make_table(("Arm", "Seed", "Event", "Severity", "Onset step", "Run ended", "Final score"), [("", rows)])


def config(report: Mapping[str, Any]) -> Table:
    """Dotted paths in which an arm differs from the reference arm."""
    rows = [
        [cell(d["arm"]), cell(d["path"], css="mono"), cell(d["value"], css="mono"), cell(d["reference"], css="mono")]
        for d in report["differences"]
    ]
    return make_table(("Arm", "Path", "Value", f"In {report['study']['reference']}"), [("", rows)])


def validity(report: Mapping[str, Any]) -> Table:
    """Findings of the set-up that are not PASS: what was measured, what was allowed, what it means, what to do."""
    rows = [
        [
            cell(f["check"]),
            cell(f["level"], css="bad" if f["level"] == "INVALID" else "open"),
            cell(f["arm"], f"{len(f['runs'])} run{'s' if len(f['runs']) != 1 else ''}" if f["runs"] else ""),
            cell(f["measured"], f"limit {f['limit']}", "wrap"),
            cell(f["why"], f["advice"], "wrap"),
        ]
        for f in report["validity"]["findings"]
    ]
    return make_table(("Check", "Level", "Arm", "Measured", "What it means, what to do"), [("", rows)])


def setup(report: Mapping[str, Any]) -> Table:
    """The parts of the fairness contract that were not kept; `same` and `unknown` name the others."""
    checks = [(c["what"], c) for c in report["setup"]]
    rows = [[cell(name, css="bad"),
             cell("; ".join(f"{v['value']} ({v['runs']} runs)" for v in c["values"]), css="wrap")]
            for name, c in checks if c["state"] == "differs"]  # fmt: skip
    named = {
        "same": [n for n, c in checks if c["state"] == "same"],
        "unknown": [n for n, c in checks if c["state"] == "not recorded"],
    }
    return {**make_table(("Differs between runs", "Values"), [("", rows)]), **named}
