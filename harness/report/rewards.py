"""The named parts of the reward, each by itself: what a sum of them hides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.results import COMPONENT
from harness.core.scores import final_eval
from harness.report.collect import tail_mean, values
from harness.report.tables import Notes, Table, arm_cell, by_group, make_table
from harness.stats.estimate import mean_t

if TYPE_CHECKING:
    from harness.core.results import EvalRecord, RunFolder

UNKNOWN = "not recorded"


def reward_components(runs: Mapping[str, Sequence[RunFolder]], counted: Collection[str]) -> dict[str, Any]:
    """Arm -> component -> estimates over counted runs: held-out mean before and after, training mean at the end."""
    return {
        arm: {name: _part([r for r in members if r.path.name in counted], name) for name in _names(members)}
        for arm, members in runs.items()
    }


def _names(runs: Sequence[RunFolder]) -> list[str]:
    logged = {key for r in runs for row in r.steps[:1] for key in row if key.startswith(COMPONENT)}
    held_out = {name for r in runs for e in r.evals for name in e.components}
    return sorted(held_out | {key.removeprefix(COMPONENT) for key in logged})


def _part(runs: Sequence[RunFolder], name: str) -> dict[str, Any]:
    finals = [final_eval(r) for r in runs]
    found = {
        "base": [_at(_first(r, final), name) for r, final in zip(runs, finals, strict=True)],
        "final": [_at(final, name) for final in finals],
        "training_end": [_training_end(r, COMPONENT + name) for r in runs],
    }
    return {key: mean_t([x for x in column if x is not None]).as_dict() for key, column in found.items()}


def _training_end(run: RunFolder, key: str) -> float | None:
    logged = any(key in row for row in run.steps[:1])
    return tail_mean(values(run.steps, key)) if logged else None


def _first(run: RunFolder, final: EvalRecord | None) -> EvalRecord | None:
    """The evaluation before training on the split of the final one."""
    return next((e for e in run.evals if final is not None and e.step == 0 and e.split == final.split), None)


def _at(record: EvalRecord | None, name: str) -> float | None:
    return None if record is None else record.components.get(name)


def reward_parts(report: Mapping[str, Any]) -> Table:
    """Each named part of the reward by itself; no rows where the task has none."""
    notes, groups = Notes(), []
    parts = report["reward_components"]
    names = sorted({name for of_arm in parts.values() for name in of_arm})
    for g, arms in by_group(report) if names else []:
        rows = []
        for a in arms:
            cells = [arm_cell(a)]
            for name in names:
                part = parts[a["name"]].get(name)
                for key in ("base", "final", "training_end"):
                    known = part is not None and part[key]["value"] is not None
                    cells.append(notes.value(part[key], "number") if known else notes.missing(UNKNOWN))
            rows.append(cells)
        groups.append((g["title"], rows))
    columns = ["Arm", *(f"{n}: {when}" for n in names for when in ("base", "final", "training, end"))]
    return make_table(columns, groups, notes.listed())
