"""Search spaces: what an algorithm ships, what all share, what the user adds; and a point of one as an arm. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.algorithm import leaves
from harness.core.errors import UsageError, near
from harness.core.registry import search_space
from harness.core.resolve import resolve_algorithm
from harness.core.search import Dimension
from harness.core.spec import ArmSpec, Recipe, parse
from harness.study.designs import settled

LR = "recipe.lr"
LR_REACH = 10.0  # the learning rate is searched from a tenth of the recipe's to ten times it
BATCH = "recipe.prompts_per_step"
BATCH_REACH = 2  # prompts of a rollout batch: half as many, the recipe's, twice as many
LR_CHECK = (1 / 3, 3.0)  # sensitivity of the defaults: trials 1 and 2
Params = dict[str, Any]


def shared_space(arm: ArmSpec, recipe: Recipe) -> tuple[Dimension, ...]:
    """What every algorithm has: learning rate, updates per rollout batch, its size, and beta where there is a KL."""
    known = leaves(resolve_algorithm(arm.algorithm, arm.overrides, recipe))
    found = [
        Dimension(path=LR, low=recipe.lr / LR_REACH, high=recipe.lr * LR_REACH, log=True),
        Dimension(path="updates.mini_batches", values=tuple(sorted({2, 4, 8, known["updates.mini_batches"]}))),
        Dimension(path=BATCH, values=_batches(recipe.prompts_per_step)),
    ]
    if known.get("penalties.kl.coef"):
        beta = known["penalties.kl.coef"]
        found.append(Dimension(path="penalties.kl.coef", low=min(beta, 1e-4), high=max(beta, 0.1), log=True))
    return tuple(found)


def _batches(prompts: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, prompts // BATCH_REACH), prompts, prompts * BATCH_REACH}))


def space_of(arm: ArmSpec, recipe: Recipe, given: Sequence[tuple[str, Dimension]] = ()) -> tuple[Dimension, ...]:
    """Shared and own dimensions of an arm that its record has; those given by (arm or "", dimension) replace or add."""
    known = {**leaves(resolve_algorithm(arm.algorithm, arm.overrides, recipe)), **_recipe_paths(recipe)}
    space = {d.path: d for d in (*shared_space(arm, recipe), *search_space(arm.algorithm)) if d.path in known}
    for who, dimension in given:
        if who.lower() in ("", arm.name.lower(), arm.algorithm.lower()):
            if dimension.path not in known:
                raise UsageError(f"dimension {dimension.path}", f"{arm.name} has no such path",
                                 near(dimension.path, known))  # fmt: skip
            space[dimension.path] = dimension
    if not space:
        raise UsageError(f"{arm.name}: an empty space", "there is nothing to search", "--dim path=low:high:log")
    found = tuple(space.values())
    _check(arm, found, recipe)
    return found


def _check(arm: ArmSpec, space: Sequence[Dimension], recipe: Recipe) -> None:
    """Both ends of every dimension must be values that the part or the recipe takes, with the defaults between them."""
    start = defaults(arm, space, recipe)
    for d in space:
        whole = (int(d.low or 0), int(d.high or 0))
        ends = d.values or (whole if d.integer else (d.low, d.high))
        for value in ends:
            arm_of(arm, {**start, d.path: value}, "check", recipe)
        inside = start[d.path] in d.values if d.values else float(d.low or 0) <= start[d.path] <= float(d.high or 0)
        if not inside:
            raise UsageError(
                f"{arm.name}: {d.words()}", f"its default, {start[d.path]}, is outside, and trial 0 is the defaults",
                "a range that holds the default, or another default with --set",
            )  # fmt: skip


def _recipe_paths(recipe: Recipe) -> Params:
    return {f"recipe.{field}": getattr(recipe, field) for field in Recipe.model_fields if field != "overrides"}


def defaults(arm: ArmSpec, space: Sequence[Dimension], recipe: Recipe) -> Params:
    """The point of the space that is the arm itself."""
    known = {**leaves(resolve_algorithm(arm.algorithm, arm.overrides, recipe)), **_recipe_paths(recipe)}
    return {d.path: known[d.path] for d in space}


def arm_of(base: ArmSpec, params: Mapping[str, Any], name: str, recipe: Recipe) -> ArmSpec:
    """A point of the space as an arm; UsageError for a value that a part or the recipe does not take."""
    mine = {p.removeprefix("recipe."): v for p, v in params.items() if p.startswith("recipe.")}
    parse(Recipe, {**recipe.model_dump(), **mine}, f"recipe of {name}")
    changes = {p: v for p, v in params.items() if not p.startswith("recipe.")}
    return ArmSpec(
        name=name, algorithm=base.algorithm, overrides=settled(base, changes, recipe), bracket=base.bracket,
        roster="tuned", recipe={k: v for k, v in mine.items() if getattr(recipe, k) != v},
    )  # fmt: skip


def parse_dimension(text: str, value_of: Any) -> tuple[str, Dimension]:
    """`[ARM:]path=low:high[:log]` or `[ARM:]path=a,b,c` -> (arm or "", dimension)."""
    left, sign, right = text.partition("=")
    who, _, path = left.rpartition(":")
    parts = right.split(":")
    if not sign or not path or not right:
        raise UsageError(f"--dim {text}", "it is no dimension", "surrogate.high=0.1:0.5:log, or siblings=4,8,16")
    if len(parts) == 1:
        data: dict[str, Any] = {"path": path, "values": [value_of(v) for v in right.split(",")]}
    else:
        ends = [value_of(v) for v in parts[:2]]
        log = parts[2:] == ["log"]
        if (len(parts) > 2 and not log) or not all(isinstance(v, (int, float)) for v in ends):
            raise UsageError(f"--dim {text}", "it is no interval", "low:high, or low:high:log")
        whole = all(isinstance(v, int) for v in ends)
        data = {"path": path, "low": ends[0], "high": ends[1], "log": log, "integer": whole}
    dimension: Dimension = parse(Dimension, data, f"--dim {text}")
    return who, dimension
