"""RunSpec -> algorithm record, and what differs from the preset it is named after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.algorithm import Algorithm, difference, leaves, override, replay_mode
from harness.core.errors import UsageError, near
from harness.core.registry import algorithm as preset
from harness.core.spec import Recipe, RunSpec, ScheduleEntry, dotted, parse

SCHEDULABLE = (
    "lr", "critic_lr", "lr_schedule", "warmup", "temperature", "max_new_tokens", "micro_batch_tokens", "pool_size",
    "pool",
)  # fmt: skip


def resolve_algorithm(name: str, overrides: dict[str, Any], recipe: Recipe) -> Algorithm:
    """Preset, then the arm's overrides, then those of the recipe's values whose path the record has."""
    record = preset(name)
    known = leaves(record)
    # Said against the recipe, a value that the preset has anyway is no mistake: it keeps the recipe's away.
    needed = {p: v for p, v in overrides.items() if p not in recipe.overrides or p not in known or known[p] != v}
    record = override(record, needed) if needed else record
    known = leaves(record)
    mine = {p: v for p, v in recipe.overrides.items() if p in known and known[p] != v and p not in overrides}
    return override(record, mine) if mine else record


def resolve(spec: RunSpec) -> Algorithm:
    """The algorithm record of a run."""
    return resolve_algorithm(spec.algorithm, spec.overrides, spec.recipe)


def scheduled(
    algorithm: Algorithm, recipe: Recipe, schedule: Sequence[ScheduleEntry], fraction: float
) -> tuple[Algorithm, Recipe]:
    """Algorithm and recipe in force at a fraction of the budget.

    Raises UsageError for a recipe field that is fixed for a run, and for a part whose critic or reference is missing.
    """
    needs = algorithm.needs
    for entry in schedule:
        if fraction < entry.at:
            continue
        changes: dict[str, Any] = {k: v for k, v in entry.overrides.items() if not k.startswith("recipe.")}
        mine = {k.removeprefix("recipe."): v for k, v in entry.overrides.items() if k.startswith("recipe.")}
        fixed = next((k for k in mine if k not in SCHEDULABLE), None)
        if fixed is not None:
            raise UsageError(
                f"schedule at {entry.at:g}: recipe.{fixed}", "it cannot change during a run", near(fixed, SCHEDULABLE)
            )
        algorithm = override(algorithm, changes) if changes else algorithm
        missing = sorted((algorithm.needs - needs) & {"critic", "reference"})
        if missing:
            raise UsageError(
                f"schedule at {entry.at:g}: {', '.join(changes)}",
                f"{algorithm.name} then needs a {missing[0]}, and networks are provisioned when the run begins",
                f"an algorithm that has the {missing[0]} from the start (a coefficient of 1e-9 is enough)",
            )
        recipe = parse(Recipe, {**recipe.model_dump(), **mine}, f"schedule at {entry.at:g}") if mine else recipe
    return algorithm, recipe


def deviations(spec: RunSpec, record: Algorithm) -> tuple[str, ...]:
    """`path: preset value -> value` for everything that differs from the preset; shown wherever its name is."""
    changes = difference(preset(spec.algorithm), record)
    found = [_change(path, a, b) for path, (a, b) in changes.items() if _told(path, a, b)]
    found += [_change(f"backend.{path}", a, b) for path, (a, b) in _computed(spec).items()]
    found += [f"at {e.at:g} of the budget: {e.overrides}" for e in spec.schedule]
    if spec.backend.routers and record.routing_replay == "auto":
        kind = "token" if record.ratio.per_token else "sequence"
        mode = replay_mode(record, moe=True)
        found.append(f"routing_replay: {mode}, the default of {kind} ratios on a mixture of experts")
    if spec.start is not None:
        found.append(f"starts from {spec.start.run} ({spec.start.checkpoint})")
        found += [f"start: {what} reset" for what in spec.start.reset]
    if spec.start is not None and spec.start.prompts is not None:
        found.append(f"prompts of seed {spec.start.prompts.seed} from number {spec.start.prompts.first} on")
    return tuple(found)


def _computed(spec: RunSpec) -> dict[str, tuple[Any, Any]]:
    """How samples and gradients are computed, where that departs: path -> (from what, to what).

    From the trainer's precision, or from what the other arms have where the arm has its own.
    """
    backend, others = spec.backend, dict(spec.own_backend)
    now = dotted(backend.model_dump(mode="json")) | {"engine.dtype": backend.rollout_dtype}
    if "engine.dtype" in others:
        others["engine.dtype"] = others["engine.dtype"] or others.get("dtype", backend.dtype)
    plain = {"fp32_head": False, "engine.dtype": backend.dtype} | others
    return {path: (old, now[path]) for path, old in plain.items() if old != now[path]}


def _told(path: str, old: Any, new: Any) -> bool:
    """False for the fields of a part that came or went as a whole: its slot says so already."""
    return "." not in path or (old is not None and new is not None) or path.startswith("surrogate.")


def _change(path: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        gone = [f"no {kind}" for kind in old if kind not in new]
        return f"{path}: {', '.join(gone + [f'+ {kind}' for kind in new if kind not in old])}"
    return f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
