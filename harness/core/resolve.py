"""RunSpec -> algorithm record, and what differs from the preset it is named after."""

from __future__ import annotations

from typing import Any

from harness.core.algorithm import Algorithm, difference, leaves, override
from harness.core.registry import algorithm as preset
from harness.core.spec import Recipe, RunSpec


def resolve_algorithm(name: str, overrides: dict[str, Any], recipe: Recipe) -> Algorithm:
    """Preset, then the arm's overrides, then those of the recipe's values whose path the record has."""
    record = preset(name)
    record = override(record, overrides) if overrides else record
    known = leaves(record)
    mine = {p: v for p, v in recipe.overrides.items() if p in known and known[p] != v and p not in overrides}
    return override(record, mine) if mine else record


def resolve(spec: RunSpec) -> Algorithm:
    """The algorithm record of a run."""
    return resolve_algorithm(spec.algorithm, spec.overrides, spec.recipe)


def deviations(spec: RunSpec, record: Algorithm) -> tuple[str, ...]:
    """`path: preset value -> value` for everything that differs from the preset; shown wherever its name is."""
    found = [f"{path}: {a} -> {b}" for path, (a, b) in difference(preset(spec.algorithm), record).items()]
    found += [f"at {e.at:g} of the budget: {e.overrides}" for e in spec.schedule]
    if spec.start is not None:
        found.append(f"starts from {spec.start.run} ({spec.start.checkpoint})")
    return tuple(found)
