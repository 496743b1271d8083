"""Options -> StudySpec: preset, then the user's choices, checked before anything is run or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from algorithms.checks import refusals_along
from harness import NUMERICS_VERSION
from harness.core.ablation import Ablation
from harness.core.algorithm import leaves
from harness.core.errors import UsageError, near
from harness.core.ports import Task
from harness.core.registry import algorithm as preset
from harness.core.registry import algorithm_names, build_task
from harness.core.resolve import resolve_algorithm
from harness.core.spec import (
    ArmSpec,
    BackendSpec,
    Budget,
    CheckpointSpec,
    EvalSpec,
    ModelSpec,
    MonitorSpec,
    Recipe,
    RunSpec,
    SkippedArm,
    StudySpec,
    TaskSpec,
    dotted,
    parse,
    stable_hash,
)
from harness.study.arms import apply_changes, arm_backend, arm_of, build_arm, check_arms, check_cells, together
from harness.study.designs import build_cells, parse_design, refuse_twins, with_design
from harness.study.presets import Kind, load_preset, merge
from harness.study.replay import with_replay

SECTIONS = ("recipe", "eval", "task", "model", "backend", "budget", "checkpoints", "monitor")
KEYS = (
    "task", "model", "rosters", "arms", "controls", "seeds", "budget", "eval", "recipe", "backend", "overrides",
    "delta", "monitor", "start", "schedule", "name", "reference_arm", "checkpoints", "design",
)  # fmt: skip

NEEDED = ("task", "model", "rosters", "arms", "seeds", "budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A checked study."""

    spec: StudySpec
    task: Task
    warnings: list[str]
    recipe_notes: list[str]  # what the recipe changes in the algorithms
    ablation: Ablation | None = None  # the design, where the arms are its cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the command line adds to a preset; None leaves the preset's value."""

    preset: str
    kind: Kind = "studies"  # where a preset's name is looked up
    design: Mapping[str, Any] = field(default_factory=dict)  # on top of an ablation's
    task: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    arms: tuple[str, ...] | None = None
    controls: tuple[str, ...] | None = None
    rosters: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    budget: Mapping[str, Any] | None = None
    backend: Mapping[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()  # "path=value"
    run_equivalent: bool = False
    name: str | None = None


def build(
    choices: Choices,
    recipe_of: Callable[[str], Mapping[str, Any]],
    held_out_of: Callable[[str], Mapping[str, Any]],
    backend_of: Callable[[StudySpec], BackendSpec],
) -> Planned:
    """The study; a model's recipe and held-out sizes come by name, the backend from what was measured for both."""
    data, arm_changes = _settings(choices)
    task_data = data["task"] if isinstance(data["task"], dict) else {"name": data["task"]}
    model_data = data["model"] if isinstance(data["model"], dict) else {"name": data["model"]}
    task_spec = parse(TaskSpec, task_data, "task")
    model = parse(ModelSpec, model_data, "model")
    recipe = parse(Recipe, merge(recipe_of(model.name), data.get("recipe", {})), "recipe")
    _check_recipe(recipe)
    held_out = merge(held_out_of(model.name), data.get("eval", {}))
    task = build_task(task_spec.name, task_spec.params)
    task_spec = task_spec.model_copy(update={"data_sha256": task.info.data_sha256})
    changes = {**data.get("overrides", {}), **arm_changes}
    ablation: Ablation | None = None
    skipped: tuple[SkippedArm, ...] = ()
    if "design" in data:
        arms, ablation = _cells(data, changes, recipe)
        notes = check_cells(arms, recipe, task.info)
    else:
        arms, skipped, notes = check_arms(
            apply_changes(_arms(data), changes, recipe), recipe, task.info,
            run_equivalent=choices.run_equivalent, named=choices.arms is not None,
        )  # fmt: skip
    reference = data.get("reference_arm", "GRPO")
    given: dict[str, Any] = {
        "name": "",
        "preset": choices.preset,
        "task": task_spec,
        "model": model,
        "recipe": recipe,
        "budget": parse(Budget, data["budget"], "budget"),
        "eval": parse(EvalSpec, _held_out(held_out, task), "eval"),
        "backend": parse(BackendSpec, data.get("backend", {}), "backend"),
        "arms": arms,
        "skipped": skipped,
        "seeds": data["seeds"],
        "reference_arm": reference if reference in [a.name for a in arms] else arms[0].name,
        "delta": data.get("delta", 0.02),
        "monitor": parse(MonitorSpec, data.get("monitor", {}), "monitor"),
        "start": data.get("start"),
        "schedule": data.get("schedule", ()),
        "checkpoints": parse(CheckpointSpec, data.get("checkpoints", {}), "checkpoints"),
    }
    spec: StudySpec = parse(StudySpec, given, choices.preset)
    _check_seeds(spec.seeds)
    for arm in arms:
        record = resolve_algorithm(arm.algorithm, arm.overrides, recipe)
        refusals_along(record, arm_recipe(recipe, arm), (*spec.schedule, *arm.schedule), task.info)
    name = choices.name or data.get("name") or study_name(spec)
    spec = spec.model_copy(update={"name": name})
    spec = with_replay(spec.model_copy(update={"backend": backend_of(spec)}), named=ablation is None)
    used = [f"{path} = {value}" for path, value in recipe.overrides.items()]
    told = list(dict.fromkeys([*notes, *apart(spec)]))
    return Planned(spec=spec, task=task, warnings=told, recipe_notes=used, ablation=ablation)


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds:
        raise UsageError("no seeds", "a study needs at least one run per arm", "--seeds 3")
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {list(seeds)}", "they are different whole numbers from 0 on", "--seeds 0,1,2")


def _settings(choices: Choices) -> tuple[dict[str, Any], dict[str, Any]]:
    """The preset with the user's choices, of the right shape, and the changes that belong to the arms."""
    data = load_preset(choices.preset, choices.kind)
    unknown = [k for k in data if k not in KEYS]
    if unknown:
        raise UsageError(f"{choices.preset}: unknown key {unknown[0]}", "no such setting", near(unknown[0], KEYS))
    data, arm_changes = with_choices(data, choices)
    listed = ("rosters", "seeds") if choices.kind == "ablations" else ("rosters", "arms", "seeds")
    needed = (*(k for k in NEEDED if k != "arms"), "design") if choices.kind == "ablations" else NEEDED
    if choices.kind == "studies" and "design" in data:
        raise UsageError(f"{choices.preset}: design", "it says which cells of an ablation are run", "harness ablate")
    for key in needed:
        if key not in data:
            raise UsageError(f"{choices.preset}: no {key}", "a study cannot do without", "add it, or `extends: quick`")
    for key in listed:
        if not isinstance(data[key], (list, tuple)):
            raise UsageError(f"{choices.preset}: {key}: {data[key]!r}", "it is a list", f"{key}: [{data[key]}]")
    return data, arm_changes


def _check_recipe(recipe: Recipe) -> None:
    """A path that no preset has would be ignored in every arm, silently."""
    known = {path for name in algorithm_names() for path in leaves(preset(name))}
    for path in recipe.overrides:
        if path not in known:
            raise UsageError(f"recipe.overrides.{path}", "no algorithm has such a path", near(path, known))


def _arms(data: Mapping[str, Any]) -> tuple[ArmSpec, ...]:
    rosters = tuple(data["rosters"])
    several = len(rosters) > 1
    arms = [arm_of(a, roster, several_rosters=several) for roster in rosters for a in data["arms"]]
    arms += [arm_of(c, rosters[0], several_rosters=False, control=True) for c in data.get("controls") or ()]
    return together(arms)


def _cells(data: Mapping[str, Any], changes: Mapping[str, Any], recipe: Recipe) -> tuple[tuple[ArmSpec, ...], Ablation]:
    """The cells of a design, and the controls beside them."""
    if len(data["rosters"]) != 1:
        raise UsageError(f"rosters {data['rosters']}", "the cells of a design have one", "--roster matched")
    roster = data["rosters"][0]
    cells, ablation = build_cells(parse_design(data["design"], roster, recipe), roster, recipe)
    controls = tuple(build_arm(c, roster, several_rosters=False) for c in data.get("controls") or ())
    arms = apply_changes((*cells, *controls), changes, recipe)
    refuse_twins(arms, recipe)
    return arms, ablation


def _held_out(wanted: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The number of held-out prompts, bounded by what a finite split has."""
    bounded = dict(wanted)
    for key, split in (("prompts", "validation"), ("final_prompts", "test")):
        size = task.info.sizes.get(split)  # type: ignore[call-overload]
        if size is not None:
            bounded[key] = min(bounded.get(key, size), size)
    return bounded


def with_choices(data: dict[str, Any], choices: Choices) -> tuple[dict[str, Any], dict[str, Any]]:
    """The preset with the user's choices, and the changes that belong to the arms."""
    result = dict(data)
    if choices.task:
        other = choices.task.get("name") not in (None, _name(result.get("task")))
        old = {} if other else (result["task"] if isinstance(result["task"], dict) else {"name": result["task"]})
        result["task"] = merge(old, choices.task)
    if choices.model:
        result["model"] = choices.model
    for key, value in (
        ("arms", choices.arms),
        ("controls", choices.controls),
        ("rosters", choices.rosters),
        ("seeds", choices.seeds),
        ("budget", choices.budget),
    ):
        if value is not None:
            result[key] = value
    if choices.design:
        result["design"] = with_design(result.get("design", {}), choices.design)
    if choices.backend:
        result["backend"] = merge(result.get("backend", {}), choices.backend)
    changes: dict[str, Any] = {}
    for text in choices.sets:
        path, sign, written = text.partition("=")
        if not sign:
            raise UsageError(f"--set {text}", "a setting has the form path=value", "e.g. --set recipe.lr=1e-4")
        parsed = parse_value(written)
        section, _, rest = path.partition(".")
        if section in SECTIONS and rest:
            inner = result.get(section, {})
            inner = {"name": inner} if isinstance(inner, str) else dict(inner)
            result[section] = merge(inner, _nested(rest, parsed))
        elif path in ("delta", "reference_arm"):
            result[path] = parsed
        else:
            changes[path] = parsed
    return result, changes


def parse_value(text: str) -> Any:
    """YAML's reading of a value, with 1e-4 as a number."""
    value = yaml.safe_load(text) if text else ""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(path: str, value: Any) -> dict[str, Any]:
    if path.startswith("overrides."):
        return {"overrides": {path.removeprefix("overrides."): value}}
    head, _, rest = path.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _name(value: Any) -> str | None:
    return value.get("name") if isinstance(value, dict) else value


def study_name(spec: StudySpec) -> str:
    """`quick-tiny-chain-1a2b3c`: the same for the same choices, so that repeating a command continues it."""
    content = stable_hash([spec.hash, NUMERICS_VERSION])
    words = (spec.preset or "study", spec.model.name, spec.task.name)
    slug = "-".join(w.rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".yaml") for w in words)
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in slug.lower())
    return f"{safe}-{content[:6]}"


def arm_recipe(recipe: Recipe, arm: ArmSpec) -> Recipe:
    """The study's recipe with what a control has for itself."""
    if not arm.recipe:
        return recipe
    changed: Recipe = parse(Recipe, merge(recipe.model_dump(), arm.recipe), f"recipe of {arm.name}")
    return changed


def apart(spec: StudySpec) -> list[str]:
    """A warning where arms that are compared compute or sample in different ways; UsageError where one cannot."""
    for arm in spec.arms:
        arm_backend(spec.backend, arm)
    own = [a.name for a in spec.arms if a.backend and a.bracket != "control"]
    if not own:
        return []
    return [
        f"{', '.join(own)}: with an engine or precision of its own. A difference from an arm with another one is an "
        "effect of both, and held-out scores are those of what samples."
    ]


def run_specs(spec: StudySpec) -> list[RunSpec]:
    """All runs of a study, seed by seed, so that an interrupted study has whole seeds first."""
    shared = dotted(spec.backend.model_dump(mode="json"))
    return [
        RunSpec(
            numerics_version=NUMERICS_VERSION,
            arm=arm.name,
            algorithm=arm.algorithm,
            overrides=arm.overrides,
            bracket=arm.bracket,
            roster=arm.roster,
            task=spec.task,
            model=spec.model,
            recipe=arm_recipe(spec.recipe, arm),
            budget=spec.budget,
            seed=seed,
            eval=spec.eval,
            backend=arm_backend(spec.backend, arm),
            own_backend={path: shared[path] for path in arm.backend},
            monitor=spec.monitor,
            start=spec.start,
            schedule=(*spec.schedule, *arm.schedule),
            checkpoints=spec.checkpoints,
        )
        for seed in spec.seeds
        for arm in spec.arms
    ]
