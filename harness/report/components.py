"""What the arms are made of, and whether anything else differs. From the resolved algorithm as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.validity.across import PER_SEED, SETTINGS, settings_of

if TYPE_CHECKING:
    from harness.core.results import RunFolder, StudyFolder

SLOTS = (
    "siblings",
    "admission",
    "selection",
    "rewards",
    "advantage",
    "ratio",
    "surrogate",
    "aggregate",
    "penalties",
    "updates",
)
# shown where an arm has another value
EXTRA = {
    "prompts_factor": 1,
    "old_logp": "train",
    "routing_replay": "auto",
    "exclusions": [],
    "correction": {"kind": "none"},
    "logp_noise": {"of": "old", "sd": 0.0, "bias": 0.0},
}


def resolved(runs: Mapping[str, Sequence[RunFolder]]) -> dict[str, dict[str, Any]]:
    """Arm -> its algorithm with every slot, from the first finished run."""
    found = {arm: [r.result.algorithm_resolved for r in members if r.result] for arm, members in runs.items()}
    return {arm: values[0] for arm, values in found.items() if values and values[0]}


def describe(value: Any) -> str:
    """One slot in words: `clip(low=0.2, high=0.28)`; unset fields are left out."""
    if isinstance(value, Mapping):
        kind = value.get("kind")
        fields = ", ".join(f"{k}={describe(v)}" for k, v in value.items() if k != "kind" and v is not None)
        return f"{kind}({fields})" if kind and fields else str(kind or fields)
    if isinstance(value, (list, tuple)):
        return " + ".join(describe(v) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def matrix(algorithms: Mapping[str, Mapping[str, Any]], reference: str | None) -> dict[str, Any]:
    """Slots x arms, each cell marked where it differs from the reference arm."""
    base = algorithms.get(reference or "", {})
    names = [s for s in (*SLOTS, *EXTRA) if any(s in a for a in algorithms.values())]
    names = [s for s in names if s not in EXTRA or any(a.get(s, EXTRA[s]) != EXTRA[s] for a in algorithms.values())]
    rows = [
        {
            "slot": slot,
            "cells": [
                {
                    "arm": arm,
                    "text": describe(a.get(slot, "none")),
                    "differs": bool(base) and a.get(slot) != base.get(slot),
                }
                for arm, a in algorithms.items()
            ],
        }
        for slot in names
    ]
    return {"reference": reference if base else None, "arms": list(algorithms), "rows": rows}


def flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> leaf; parts in a list are addressed by kind."""
    if isinstance(data, Mapping):
        flat: dict[str, Any] = {}
        for key, value in data.items():
            if key == "kind" and path:
                flat[path] = value
            else:
                flat |= flatten(value, f"{path}.{key}" if path else str(key))
        return flat
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, Mapping) and "kind" in x for x in data):
        return {k: v for x in data for k, v in flatten(x, f"{path}.{x['kind']}").items()}
    return {path: data}


def differences(algorithms: Mapping[str, Mapping[str, Any]], reference: str | None) -> list[dict[str, Any]]:
    """Arm, dotted path, value there, value in the reference arm."""
    if not reference or reference not in algorithms:
        return []
    base = {k: v for k, v in flatten(algorithms[reference]).items() if k != "name"}
    rows = []
    for arm, data in algorithms.items():
        own = {k: v for k, v in flatten(data).items() if k != "name"}
        for path in [p for p in {**base, **own} if arm != reference and base.get(p) != own.get(p)]:
            rows.append({"arm": arm, "path": path, "value": _show(own, path), "reference": _show(base, path)})
    return rows


def _show(flat: Mapping[str, Any], path: str) -> str:
    return describe(flat[path]) if path in flat else "absent"


def identical(algorithms: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Sets of arms whose resolved algorithms are the same but for the name."""
    groups: dict[str, list[str]] = {}
    for arm, data in algorithms.items():
        groups.setdefault(
            repr(sorted(flatten({k: v for k, v in data.items() if k != "name"}).items(), key=str)), []
        ).append(arm)
    return [arms for arms in groups.values() if len(arms) > 1]


def shared_setup(study: StudyFolder) -> list[dict[str, Any]]:
    """Everything that must be the same in all arms, and whether it was: the fairness contract, checked."""
    if not study.runs:
        return []
    settings = [settings_of(run, study.spec) for run in study.runs]
    checks = [_check(name, [s[key] for s in settings]) for key, (_, name) in SETTINGS.items() if key not in PER_SEED]
    per_seed: dict[int, set[str]] = {}
    for r, found in zip(study.runs, settings, strict=True):
        if r.result and found["model_sha256"] is not None:
            per_seed.setdefault(r.spec.seed, set()).add(found["model_sha256"])
    known = [*per_seed.values()]
    state = "not recorded" if not known else "same" if all(len(s) == 1 for s in known) else "differs"
    checks.append({"what": "initial weights, within each seed pair", "state": state, "values": []})
    return checks


def _check(name: str, values: Sequence[Any]) -> dict[str, Any]:
    distinct: dict[str, int] = {}
    for value in values:
        if value is not None:
            text = describe(value)
            distinct[text] = distinct.get(text, 0) + 1
    state = "same" if len(distinct) == 1 else "differs" if distinct else "not recorded"
    return {
        "what": name,
        "state": state,
        "values": [{"value": v, "runs": n} for v, n in distinct.items()] if state == "differs" else [],
    }
