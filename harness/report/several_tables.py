"""Tables of several studies together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.report import text
from harness.report.tables import Notes, Table, cell, make_table


def views(data: Mapping[str, Any]) -> dict[str, Table]:
    """All tables by name."""
    return {"across": across(data), "pairs": pairs(data)}


def across(data: Mapping[str, Any]) -> Table:
    """Arms over the studies, and their mean in each."""
    notes, found = Notes(), data["across"]
    rows = [[
        cell(a["name"]), notes.value(a["mean"], "score") if a["mean"]["low"] is not None else _plain(a["mean"]),
        cell(f"{a['collapse']['k']}/{a['collapse']['n']}", text.interval(a["collapse"], "fraction")),
        *(_plain(a[k]) for k in ("iqm", "median", "optimality_gap")),
        *(cell(text.score(v)) for v in a["each"]),
    ] for a in found["arms"]]  # fmt: skip
    columns = ("Arm", "Mean over studies", "Collapsed", "IQM", "Median", "Gap to 1", *found["strata"])
    return make_table(columns, [("", rows)], notes.listed())


def pairs(data: Mapping[str, Any]) -> Table:
    """Differences from the reference over the studies, and in each with its label there."""
    found = data["across"]
    labels = {n: {c["a"]: c for c in r["comparisons"]} for n, r in zip(data["names"], data["studies"], strict=True)}
    rows = [[
        cell(f"{p['a']} \u2212 {p['b']}"), _plain(p, "signed"), _plain(p["improvement"]),
        cell(text.p_value(p["p_collapse"])),
        *(cell(text.signed(d), text.label_words(c) if (c := labels[n].get(p["a"])) else "")
          for n, d in zip(found["strata"], p["each"], strict=True)),
    ] for p in found["pairs"]]  # fmt: skip
    columns = ("Pair", "Mean difference", "P(better)", "p, collapse rates", *found["strata"])
    return make_table(columns, [("", rows)])


def _plain(e: Mapping[str, Any], kind: str = "score") -> dict[str, Any]:
    """A value with its interval, or with n where there is none."""
    return cell(
        text.FORMATS[kind](e["value"]), text.interval(e, kind) if e["low"] is not None else f"n={e['n']}, no interval"
    )
