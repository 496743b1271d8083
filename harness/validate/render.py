"""The report of a validation as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FAMILY = {
    "a": "A, which was looked at while the rules were written",
    "b": "B, with other shapes, gaps and units; `grad_explosion` and the noise guards of the reward changed after it",
    "c": "C, held out: written after the last change of a rule",
}


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = ["# Validation of the collapse detectors", "", report["note"], ""]
    parts += ["Rules: " + ", ".join(f"`{name}` v{version}" for name, version in report["rules"].items()) + ".", ""]
    for name, found in report.get("synthetic", {}).items():
        parts += [f"## Synthetic curves, family {FAMILY[name]}", "", *_synthetic(found), ""]
    if "induced" in report:
        parts += ["## Real runs broken on purpose", "", *_induced(report["induced"]), ""]
    return "\n".join(parts).rstrip() + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    line = "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"
    return ["| " + " | ".join(head) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]


def _synthetic(s: Mapping[str, Any]) -> list[str]:
    h, w = s["healthy"], s["healthy_with_pre_onset"]
    lines = [
        f"{s['curves']} curves. False alarms: {h['false_alarms']} in {h['steps']:,} steps of {h['runs']} healthy runs, "
        f"{_rate(h)} per 1000 steps; with the steps before an onset {w['false_alarms']} in {w['steps']:,}, {_rate(w)}.",
        f"Warnings (benign gradient spikes, mostly): {h['warnings_per_1000']:.1f} per 1000 healthy steps.",
    ]
    if s["solved"]["runs"]:
        v = s["solved"]
        lines.append(
            f"Of {v['runs']} runs that solve their task (all groups right, hardly any entropy), {v['called_collapse']} "
            f"were called a collapse and {v['with_degraded']} degraded."
        )
    head = ["fault", "curves", "caught", "recall", "precision", "delay median", "p90", "from onset", "onset error"]
    rows = [_row(f"`{kind}`", t) for kind, t in s["types"].items()]
    rows.append(_row("all that alarm", s["alarm_types"]))
    lines += ["", *table(head, rows), "", "By shape of the fault:", ""]
    lines += table(head, [_row(shape, t) for shape, t in s["shapes"].items()])
    lines += ["", "Alarms after the onset, by fault:", "", *_matrix(s["confusion"])]
    missed = [name for t in s["types"].values() for name in t["missed"]]
    if missed:
        lines += ["", "Missed: " + ", ".join(missed) + "."]
    return lines


def _row(name: str, t: Mapping[str, Any]) -> list[str]:
    reach = t["faults"] - t["out_of_reach"]
    recall = "n/a" if t["recall"] is None else f"{t['recall']:.3f} (> {t['recall_low']:.3f})"
    precision = "n/a" if t["precision"] is None else f"{t['precision']:.3f} (> {t['precision_low']:.3f})"
    numbers = (t["delay"]["median"], t["delay"]["p90"], t["delay_from_onset"]["median"], t["onset_error"]["median"])
    return [name, str(t["faults"]), f"{t['caught']}/{reach}", recall, precision, *(_number(n) for n in numbers)]


def _induced(s: Mapping[str, Any]) -> list[str]:
    recall, right = s["recall"], s["right_type"]
    lines = [
        f"{s['faulty_runs']} faulty and {s['healthy_runs']} healthy runs of the embedded model; "
        f"{s['risen_before_the_fault']} of the faulty ones had risen by .2 before the fault.",
        f"Detected: {recall['value']:.3f} (95 % {recall['low']:.3f} to {recall['high']:.3f}), by the right type "
        f"{right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f}); delay after the fault's first step: median "
        f"{_number(s['delay_median'])}, p90 {_number(s['delay_p90'])} steps.",
        f"False alarms: {s['false_alarms']} in {s['healthy_steps']:,} healthy steps, {_rate(_flat(s))} per 1000; "
        f"COLLAPSE events in healthy runs: {s['collapse_events_in_healthy_runs']}.",
        "",
        "Label (held-out score under half of its best in the last three evaluations) against status:",
        "",
        *_matrix(s["label_and_status"]),
        "",
        "Events by fault:",
        "",
        *_matrix(s["confusion"]),
        "",
    ]
    head = ["fault, arm, seed", "base", "before", "final", "lost", "status", "verdict", "first", "delay"]
    rows = [
        [
            f"{v['fault']}, {v['arm']}, {v['seed']}", *(f"{v[k]:.3f}" for k in ("base", "before", "final")),
            "yes" if v["lost"] else "no", v["status"], v["verdict"], f"`{v['first']}`" if v["first"] else "",
            _number(v["delay"]),
        ]
        for v in s["runs"]
    ]  # fmt: skip
    return lines + table(head, rows)


def _flat(s: Mapping[str, Any]) -> dict[str, float]:
    found = s["false_alarms_per_1000"]
    return {"per_1000": found["value"], "low": found["low"], "high": found["high"]}


def _rate(h: Mapping[str, Any]) -> str:
    return f"{h['per_1000']:.3f} (95 % {h['low']:.3f} to {h['high']:.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if value == round(value, 1) else f"{value:.1f}"


def _matrix(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Rows against columns, zeros left blank; columns that no row has are not shown."""
    columns = sorted({name for row in found.values() for name in row})
    return table(["", *columns], [[f"`{k}`", *(str(row.get(c) or "") for c in columns)] for k, row in found.items()])
