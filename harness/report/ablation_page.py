"""report/ablation.json -> Markdown and a terminal view."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.results import dumps, write_atomic
from harness.report import text
from harness.report.ablation import RESPONSES, analyse, interaction_matrix
from harness.report.ablation_plots import effect_plots
from harness.report.markdown import escape
from harness.report.page import Page, Section, write_page
from harness.report.terminal import ASCII

Data = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def write_ablation_report(study: Path) -> dict[str, Path]:
    """Writes report/ablation.json, .md, .html and figures; all are rendered from what the JSON holds."""
    source = dumps(analyse(study))
    known = json.loads(source)
    files = {"ablation": ("ablation.json", source + "\n"), "effects": ("ablation.md", markdown(known))}
    for name, content in files.values():
        write_atomic(study / "report" / name, content)
    paths = {kind: study / "report" / name for kind, (name, _) in files.items()}
    return {**paths, **write_page(page(known), study / "report", "ablation")}


def _effect(e: Data | None, form: str = "signed") -> str:
    if e is None:
        return "n/a"
    return (
        text.value_interval(e, form)
        if e.get("low") is not None
        else f"{text.FORMATS[form](e['value'])} (n={e.get('n')})"
    )


def _amount(e: Data | None) -> str:
    """A change in tokens or seconds, with its sign."""
    if e is None:
        return "n/a"
    low, high = text.number(e["low"]), text.number(e["high"])
    return f"{'+' if e['value'] >= 0 else ''}{text.number(e['value'])} [{low}, {high}]"


def effect_rows(r: Data) -> Rows:
    """The effect table."""
    rows: Rows = [
        ("factor", "level against reference", "score", "Holm p", "strongest interaction", "collapsed", "exact p",
         "length", "tokens", "seconds")
    ]  # fmt: skip
    for e in r["effects"]:
        score, crossed, c = e["score"], e["interaction"], e["collapse"]
        with_ = "n/a"
        if crossed:
            other = next(i for i, f in enumerate(crossed["factors"]) if f != e["factor"])
            with_ = f"{crossed['factors'][other]}: {crossed['levels'][other]} {text.signed(crossed['value'])}"
        p = c["p_fisher"] if c["p_paired"] is None else c["p_paired"]
        rows.append((
            e["factor"], f"{e['level']} - {e['reference']}", _effect(score),
            text.p_value(score["p_adjusted"]) if score else "n/a", with_,
            f"{c['k']}/{c['n']} - {c['k_reference']}/{c['n_reference']}", text.p_value(p),
            _amount(e["length"]), _amount(e["sampled_tokens"]), _amount(e["wallclock_s"]),
        ))  # fmt: skip
    return rows


def matrix_rows(r: Data) -> Rows:
    """Two-way interactions of the score, upper triangle."""
    labels, cells = interaction_matrix(r["fits"]["score"]["effects"])
    if not cells:
        return []
    rows: Rows = [("", *labels)]
    for a in labels:
        rows.append((a, *(_effect(cells.get((a, b))) if (a, b) in cells else "" for b in labels)))
    return rows


def single_rows(r: Data) -> Rows:
    """Leave-one-out, add-one-in and Shapley value of each component."""
    shapley = {s["factor"]: s for s in r["shapley"]}
    names = list(dict.fromkeys([*(s["factor"] for s in r["single"]), *shapley]))
    if not names:
        return []
    single = {s["factor"]: s for s in r["single"]}
    rows: Rows = [("component", "left out of the full algorithm it costs", "added alone it gains", "Shapley value")]
    for name in names:
        s = single.get(name, {})
        rows.append((name, _effect(s.get("leave_one_out")), _effect(s.get("add_one_in")), _effect(shapley.get(name))))
    return rows


def path_rows(r: Data) -> Rows:
    """The steps of a path."""
    if not r["path"]:
        return []
    return [("step", "from", "to", "score"), *((p["factor"], p["b"], p["a"], _effect(p)) for p in r["path"])]


def cell_rows(r: Data) -> Rows:
    """Every cell."""
    rows: Rows = [("cell", "score", "collapsed", "length", "tokens", "seconds")]
    for c in r["cells"]:
        k = c["collapsed"]
        rows.append((
            c["arm"], text.value_interval(c["score"]), f"{round((k['value'] or 0) * k['n'])}/{k['n']}",
            text.number(c["length"]["value"]), text.count(c["sampled_tokens"]["value"]),
            text.seconds(c["wallclock_s"]["value"]),
        ))  # fmt: skip
    return rows


def beside_rows(r: Data) -> Rows:
    """Arms beside the design."""
    if not r["beside"]:
        return []
    return [("arm beside the design", "against", "score"), *((b["a"], b["b"], _effect(b)) for b in r["beside"])]


def headline(r: Data) -> str:
    """What can be said in one sentence, by rule."""
    effects = [e["score"] for e in r["effects"] if e["score"]]
    if not effects:
        return f"No effect can be estimated: {r['fits']['score']['note']}."
    sure = [e for e in effects if e["p_adjusted"] < 0.05]
    words = [f"{e['factors'][0]}: {e['levels'][0]} {text.value_interval(e, 'signed')}" for e in sure]
    found = f"Effects on the score beyond chance (Holm p < 0.05): {'; '.join(words)}." if sure else (
        "No main effect on the score is beyond chance (Holm p < 0.05 in none of "
        f"{len(r['fits']['score']['effects'])} effects)."
    )  # fmt: skip
    crossed = [e for e in r["fits"]["score"]["effects"] if len(e["factors"]) == 2 and e["p_adjusted"] < 0.05]
    if crossed:
        found += " Interactions beyond chance: " + "; ".join(
            f"{e['factors'][0]}: {e['levels'][0]} x {e['factors'][1]}: {e['levels'][1]} {text.signed(e['value'])}"
            for e in crossed
        ) + "."  # fmt: skip
    return found


def pipe_table(rows: Rows) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = ["| " + " | ".join(escape(c) for c in head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(escape(c) for c in row) + " |" for row in body)])


EFFECTS = (
    "Mean at the level minus mean at the reference, over all levels of the other factors alike; least squares with the "
    "seed as block, 95 % t intervals, Holm over all effects and interactions. Collapse: exact McNemar test over runs "
    "that differ in this factor alone, Fisher's where there are none."
)


def lead(r: Data) -> str:
    """Design and size."""
    design, cells = r["design"], sum(c["setting"] is not None for c in r["cells"])
    return (
        f"Design {design['kind'].replace('_', '-')} on {design['algorithm']}: {cells} cells x "
        f"{len(r['seeds'])} paired seeds, {r['fits']['score']['n']} of {r['planned']} runs in the fit."
    )


def sections(r: Data) -> list[tuple[str, str, Rows]]:
    """Heading, sentence and table of everything that holds something."""
    found = [
        ("Effects", EFFECTS, effect_rows(r)),
        ("Interactions", "How much the effect of the row grows when the column's level replaces its reference.",
         matrix_rows(r)),
        ("Components one by one", "Paired differences and exact Shapley values, Student-t intervals over seeds. "
         "The first two disagree exactly where components interact.", single_rows(r)),
        ("Path", "One factor at a time; the increments belong to this order.", path_rows(r)),
        ("Beside the design", "", beside_rows(r)),
        ("Cells", "", cell_rows(r)),
    ]  # fmt: skip
    return [s for s in found if s[2]]


def notes(r: Data) -> list[str]:
    """What a reader must know, and every run that is not in the tables."""
    return [
        *r["notes"],
        *(f"not counted: {u['run']}: {u['why']}" for u in r["uncounted"]),
        *(f"no run yet: {arm}, seed {seed}" for arm, seed in r["missing"]),
        f"Units: {', '.join(f'{k} in {v}' for k, v in RESPONSES.items())}.",
    ]


def markdown(r: Data) -> str:
    """The page as Markdown."""
    lines = [f"# Ablation: {escape(r['study'])}", "", headline(r), "", escape(lead(r)), ""]
    for title, words, rows in sections(r):
        lines += [f"## {title}", "", *([words, ""] if words else []), pipe_table(rows), ""]
    return "\n".join([*lines, "## Notes", "", *(f"* {escape(n)}" for n in notes(r))]) + "\n"


def page(r: Data) -> Page:
    """The HTML page: the figures first, then the tables."""
    drawn = Section(title="At a glance", figures=effect_plots(r))
    tables = [Section(title=title, words=words, rows=rows) for title, words, rows in sections(r)]
    return Page(title=f"Ablation: {r['study']}", headline=headline(r), lead=lead(r), sections=[drawn, *tables],
                notes=notes(r))  # fmt: skip


def terminal(r: Data) -> str:
    """Headline, effect table and components, for a terminal."""
    parts = [headline(r), columns([row[:7] for row in effect_rows(r)])]
    parts += [columns(rows) for rows in (single_rows(r), path_rows(r)) if rows]
    return "\n\n".join(parts).translate(ASCII)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first is the head."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(x.ljust(s) for x, s in zip(row, sizes, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
