"""Remedies: what is changed in a collapsed run before it is started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

from harness.core.algorithm import Algorithm, leaves
from harness.core.errors import UsageError
from harness.core.resolve import resolve
from harness.core.spec import ArmSpec, PromptOrder, Recipe, RunSpec, parse
from harness.study.arms import apply_changes, arm_names, build_arm, display_name

SWITCHES = ("gspo", "grpo")
RANGES = ("low", "high", "cap", "kappa_low", "kappa_high")  # fields of surrogates that are a clip range
# What a model's recipe says about the optimizer; batch and limits are the user's choice of scale.
OPTIMIZATION = (
    "lr", "critic_lr", "betas", "weight_decay", "grad_clip", "lr_schedule", "warmup", "temperature", "overrides",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a remedy is applied to: a restart as it would be without one, and facts about the collapsed run."""

    spec: RunSpec  # `start` and `budget` are set; values of the schedule are those at the onset
    donor: RunSpec  # the collapsed run as it was planned
    start_step: int
    last_step: int  # of the collapsed run: it has seen the prompts up to here
    steps: int  # of the attempt
    train_size: int | None  # prompts of the train split; None: endless
    recipe: Mapping[str, Any]  # the model's own
    longest: int | None  # longest response for which prompts leave room; None: not known
    other: str | None  # the arm to switch to, where the user named one


Remedy = Callable[[Case], RunSpec]


def values(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    """The run with these algorithm paths at these values; one that has the value already is left alone."""
    arm = ArmSpec(
        name="arm", algorithm=spec.algorithm, overrides=spec.overrides, bracket=spec.bracket, roster=spec.roster
    )
    known = leaves(resolve(spec))
    for path, value in changes.items():
        if path not in known or known[path] != value:
            [arm] = apply_changes([arm], {f"arm:{path}": value}, spec.recipe)
    return spec.model_copy(update={"overrides": arm.overrides})


def with_recipe(spec: RunSpec, **changes: Any) -> RunSpec:
    """The run with other fields of its recipe."""
    recipe = parse(Recipe, {**spec.recipe.model_dump(), **changes}, "recipe")
    return spec.model_copy(update={"recipe": recipe})


def _start(spec: RunSpec, **changes: Any) -> RunSpec:
    assert spec.start is not None
    return spec.model_copy(update={"start": spec.start.model_copy(update=changes)})


def _refused(why: str) -> UsageError:
    return UsageError("this remedy", why, "the other remedies (leave --remedies out to take all that apply)")


def restart(case: Case) -> RunSpec:
    """Nothing but the seed: is the collapse a matter of chance?"""
    return case.spec


def lower_lr(case: Case, *, factor: float) -> RunSpec:
    """The policy's learning rate; the critic's stays."""
    return with_recipe(case.spec, lr=case.spec.recipe.lr / factor)


def scaled_clip(case: Case, *, factor: float) -> RunSpec:
    """Every bound of the surrogate's range, in its own units."""
    known = leaves(resolve(case.spec))
    bounds = {p: known.get(p) for p in (f"surrogate.{name}" for name in RANGES)}
    calibrated = [p for p in bounds if p.startswith("surrogate.kappa") and bounds[p] is not None]
    wanted = calibrated or [p for p in bounds if not p.startswith("surrogate.kappa")]
    found = {p: float(value) for p in wanted if (value := bounds[p]) is not None and isfinite(value) and value < 1e3}
    if not found:
        raise _refused(f"surrogate {known['surrogate']!r} of the collapsed run has no range that clips anything")
    return values(case.spec, {p: v * factor for p, v in found.items()})


def new_queries(case: Case) -> RunSpec:
    """Prompts of the collapsed run's own order that it has not come to."""
    donor = case.donor
    order = donor.start.prompts if donor.start is not None and donor.start.prompts is not None else None
    order = order or PromptOrder(seed=donor.seed)
    per_step = case.spec.recipe.prompts_per_step * resolve(case.spec).prompts_factor
    used, needed = order.first + case.last_step * per_step, case.steps * per_step
    if case.train_size is not None and used + needed > case.train_size:
        raise _refused(
            f"the train split has {case.train_size:,} prompts, the collapsed run used {used:,}, "
            f"and {needed:,} new ones are needed"
        )
    first = order.first + (case.last_step - case.start_step) * per_step
    return _start(case.spec, prompts=PromptOrder(seed=order.seed, first=first))


def longer(case: Case) -> RunSpec:
    """Twice the response limit."""
    limit = 2 * case.spec.recipe.max_new_tokens
    if case.longest is not None and limit > case.longest:
        raise _refused(f"the model attends to its prompt and {case.longest:,} response tokens; {limit:,} are needed")
    return with_recipe(case.spec, max_new_tokens=limit)


def fresh_optimizer(case: Case) -> RunSpec:
    """Weights without the optimizer's moments."""
    assert case.spec.start is not None
    return _start(case.spec, reset=(*case.spec.start.reset, "optimizer"))


def other_algorithm(case: Case) -> RunSpec:
    """Another algorithm with its own clip range; where none is named, the first of SWITCHES with another ratio."""
    old = resolve(case.spec)
    names = (case.other,) if case.other is not None else SWITCHES
    for name in names:
        arm = build_arm(name, case.spec.roster, several_rosters=False)
        changed = {"algorithm": arm.algorithm, "overrides": arm.overrides, "bracket": arm.bracket}
        spec = case.spec.model_copy(update=changed)
        new = resolve(spec)
        if new.ratio != old.ratio or (case.other and new.model_copy(update={"name": old.name}) != old):
            return _start(spec, reset=_resets(spec, old, new))
    raise _refused(f"{' and '.join(map(display_name, names))} would be what collapsed")


def _resets(spec: RunSpec, old: Algorithm, new: Algorithm) -> tuple[str, ...]:
    """State that belongs to the old algorithm's parts; a critic that was never trained has no checkpoint."""
    assert spec.start is not None
    critic = ("critic",) if "critic" in new.needs and "critic" not in old.needs else ()
    return (*spec.start.reset, *critic, "adaptive")


def default_settings(case: Case) -> RunSpec:
    """The arm as its roster has it and the optimizer as the model's recipe has it: every change taken back."""
    spec = case.spec
    own = {
        **Recipe().model_dump(include={*OPTIMIZATION}),
        **{k: v for k, v in case.recipe.items() if k in OPTIMIZATION},
    }
    plain = spec.arm.removesuffix(" (published)")
    name = next((n for n in arm_names() if plain in (n, display_name(n))), spec.algorithm)
    arm = build_arm(name, spec.roster, several_rosters=False)
    found = with_recipe(spec.model_copy(update={"algorithm": arm.algorithm, "overrides": arm.overrides}), **own)
    if found.recipe == spec.recipe and resolve(found) == resolve(spec):
        raise _refused("the collapsed run had its arm's and its model's own settings")
    return found


REMEDIES: Mapping[str, tuple[str, Remedy]] = {
    "restart": ("plain restart, another seed", restart),
    "lr_third": ("learning rate / 3", partial(lower_lr, factor=3.0)),
    "lr_tenth": ("learning rate / 10", partial(lower_lr, factor=10.0)),
    "clip_tighter": ("clip range x 0.5", partial(scaled_clip, factor=0.5)),
    "clip_looser": ("clip range x 2", partial(scaled_clip, factor=2.0)),
    "new_queries": ("new query set", new_queries),
    "longer": ("generation twice as long", longer),
    "fresh_optimizer": ("optimizer state reset", fresh_optimizer),
    "other_algorithm": ("another algorithm", other_algorithm),
    "default_settings": ("default settings", default_settings),
}
