"""A design -> its cells as arms: single changes, factorials and paths over the slots of an algorithm. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from harness.core.ablation import KINDS, WITH, WITHOUT, Ablation, Design, Factor, Level
from harness.core.algorithm import MANY, SCALARS, SLOTS, Algorithm, leaves, override
from harness.core.errors import UsageError, near
from harness.core.registry import algorithm as preset
from harness.core.resolve import resolve_algorithm
from harness.core.spec import ArmSpec, Recipe, Roster, parse
from harness.study.arms import build_arm

Setting = dict[str, str]  # factor -> level


def settings(design: Design) -> list[Setting]:
    """The cells of a design, stress factors crossed with everything, in the order in which they are run."""
    check(design)
    first = {f.name: f.levels[0].name for f in design.factors}
    last = {f.name: f.levels[-1].name for f in design.factors}
    names = list(first)
    match design.kind:
        case "factorial":
            cells = _product(design.factors)
        case "fraction":
            cells = [c for c in _product(design.factors) if sum(c[n] == first[n] for n in names) % 2 == 0]
        case "leave_one_out":
            cells = [last, *({**last, n: first[n]} for n in names)]
        case "add_one_in":
            cells = [first, *({**first, n: last[n]} for n in names)]
        case "path":
            cells = [
                {n: (last if i < done else first)[n] for i, n in enumerate(names)} for done in range(len(names) + 1)
            ]
    return [{**cell, **stress} for stress in _product(design.stress) for cell in cells]


def _product(factors: Sequence[Factor]) -> list[Setting]:
    return [
        dict(zip((f.name for f in factors), levels, strict=True))
        for levels in product(*([level.name for level in f.levels] for f in factors))
    ]


def check(design: Design) -> None:
    """Refuses a design that no number of runs could answer."""
    factors = (*design.factors, *design.stress)
    if not design.factors:
        raise UsageError("a design without factors", "nothing would be varied", "at least one factor with two levels")
    names = [f.name for f in factors]
    if len(set(names)) < len(names):
        raise UsageError(f"factors {names}", "two of them have one name", "a name of its own for each")
    for factor in factors:
        levels = [level.name for level in factor.levels]
        if len(levels) < 2 or len(set(levels)) < len(levels):
            raise UsageError(f"factor {factor.name} with levels {levels}", "there is nothing to contrast",
                             "two or more levels, each with a name of its own")  # fmt: skip
        if factor in design.factors and design.kind != "factorial" and len(levels) > 2:
            raise UsageError(f"factor {factor.name} with {len(levels)} levels in a design {design.kind}",
                             "it goes from one level to another", "design factorial, or two levels")  # fmt: skip
        if factor in design.factors and any(x.recipe or x.schedule or x.backend for x in factor.levels):
            raise UsageError(f"factor {factor.name} changes the recipe or the backend, or has a schedule",
                             "its effect would not be the algorithm's",
                             "put it under `stress`")  # fmt: skip
    if design.kind == "fraction" and len(design.factors) < 3:
        raise UsageError(f"a fraction of {len(design.factors)} factors", "it would confound them with one another",
                         "design factorial, or three factors and more")  # fmt: skip


def cell_name(design: Design, setting: Mapping[str, str]) -> str:
    """`clip_higher + token_loss`, `clip tight, ratio token`; `core` where no component is in."""
    components = {f.name for f in design.factors if {level.name for level in f.levels} == {WITHOUT, WITH}}
    inside = [n for n in components if setting[n] == WITH]
    ordered = [f.name for f in design.factors if f.name in inside]
    words = [" + ".join(ordered) or "core"] if components else []
    words += [f"{name} {level}" for name, level in setting.items() if name not in components]
    return ", ".join(words)


def build_cells(design: Design, roster: Roster, recipe: Recipe) -> tuple[tuple[ArmSpec, ...], Ablation]:
    """The arms of a design on top of the algorithm under a roster, and which cell each is.

    UsageError for a path that does not exist, a value outside a part's bounds, and cells that are the same algorithm.
    """
    base = build_arm(design.algorithm, roster, several_rosters=False)
    every = {f.name: {level.name: level for level in f.levels} for f in (*design.factors, *design.stress)}
    arms: dict[str, ArmSpec] = {}
    cells: dict[str, Setting] = {}
    for setting in settings(design):
        levels = [every[name][level] for name, level in setting.items()]
        name = cell_name(design, setting)
        arms[name] = _arm(base, name, levels, recipe, stressed=bool(design.stress))
        cells[name] = setting
    for name, changes in design.extra.items():
        if name in arms:
            raise UsageError(f"extra arm {name}", "a cell of the design has this name", "another name")
        level = Level(name=name, overrides=changes)
        arms[name] = _arm(base, name, [level], recipe, stressed=bool(design.stress))
    refuse_twins(tuple(arms.values()), recipe)
    return tuple(arms.values()), Ablation(design=design, cells=cells, extra=tuple(design.extra))


def _arm(base: ArmSpec, name: str, levels: Sequence[Level], recipe: Recipe, *, stressed: bool) -> ArmSpec:
    changes: dict[str, Any] = {}
    mine: dict[str, Any] = {}
    backend: dict[str, Any] = {}
    schedule = tuple(sorted((entry for level in levels for entry in level.schedule), key=lambda entry: entry.at))
    _refuse_shared(name, levels)
    for level in levels:
        for given, known in ((level.overrides, changes), (level.recipe, mine), (level.backend, backend)):
            twice = sorted(given.keys() & known.keys())
            if twice:
                raise UsageError(f"{name}: {twice[0]}", "two factors set it, so their effects could not be told apart",
                                 "one factor, with a level for each combination")  # fmt: skip
            known.update(given)
    if mine:
        parse(Recipe, {**recipe.model_dump(), **mine}, f"recipe of {name}")
    return ArmSpec(
        name=name, algorithm=base.algorithm, overrides=settled(base, changes, recipe), bracket=base.bracket,
        roster="stressed" if stressed else base.roster, recipe=mine, schedule=schedule,
        backend=backend,
    )  # fmt: skip


def _refuse_shared(name: str, levels: Sequence[Level]) -> None:
    """Two factors whose schedules set one path could not be told apart."""
    seen: set[str] = set()
    for level in levels:
        paths = {path for entry in level.schedule for path in entry.overrides}
        if paths & seen:
            raise UsageError(f"{name}: schedule of {sorted(paths & seen)[0]}", "two factors set it in the course of a "
                             "run, so their effects could not be told apart", "one factor, with a level for each "
                             "combination")  # fmt: skip
        seen |= paths


def settled(base: ArmSpec, changes: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The base's overrides with the changes on top, without those that change nothing: a level may be the preset's own.

    A change of a whole part takes away what the base changes inside it.
    """
    inside = tuple(f"{path}." for path in changes)
    together = {p: v for p, v in base.overrides.items() if not p.startswith(inside)} | dict(changes)
    record, kept = preset(base.algorithm), {}
    for path in sorted(together, key=lambda p: (p.count("."), p == "siblings")):  # what is kept of G before G
        after = _if_new(record, path, together[path])
        if after != record or path in recipe.overrides:  # said against the recipe, the preset's value is a change
            kept[path] = together[path]
        record = after
    return kept


def _if_new(record: Algorithm, path: str, value: Any) -> Algorithm:
    """`override` that lets a value pass which the record has already; whatever else is wrong is still refused."""
    try:
        return override(record, {path: value})
    except UsageError as error:
        if "changes nothing" in error.why:
            return record
        raise


def refuse_twins(arms: Sequence[ArmSpec], recipe: Recipe) -> None:
    """Two cells that are the same algorithm would be one run counted twice."""
    seen: dict[str, str] = {}
    for arm in arms:
        record = resolve_algorithm(arm.algorithm, arm.overrides, recipe)
        key = f"{record.model_dump_json()} {sorted(arm.recipe.items())} {arm.schedule} {sorted(arm.backend.items())}"
        if key in seen:
            raise UsageError(
                f"cells {seen[key]!r} and {arm.name!r}", "they are the same algorithm: a level changes nothing there",
                "levels that differ in every cell, or one of the cells as an `extra` arm",
            )  # fmt: skip
        seen[key] = arm.name


KEYS = ("kind", "algorithm", "factors", "stress", "extra", "between")


def with_design(data: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """A design as data with the command line's choices: a way between two algorithms replaces the factors."""
    kept = {k: v for k, v in data.items() if not ("between" in choices and k in ("factors", "algorithm", "extra"))}
    return {**kept, **choices}


def parse_design(data: Mapping[str, Any], roster: Roster, recipe: Recipe) -> Design:
    """A design from YAML: `factors: {name: {level: {path: value}}}`, or `between: [grpo, dapo]`; `stress` likewise.

    `recipe.<field>` and `backend.<field>` among a stress level's paths change these, and `schedule` holds what changes
    in the course of the budget: `refresh: {off: {}, on: {schedule: [{at: 0.5, overrides: {recipe.pool: 1}}]}}`.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"design: {data!r}", "it is a mapping", "kind, algorithm and factors")
    for key in data:
        if key not in KEYS:
            raise UsageError(f"design: unknown key {key}", "no such setting", near(str(key), KEYS))
    if "between" in data and "factors" in data:
        raise UsageError("design with between and factors", "the factors follow from the two algorithms", "one of them")
    kind, algorithm = data.get("kind", "factorial"), data.get("algorithm")
    if kind not in KINDS:
        raise UsageError(f"design {kind!r}", "there is no such design", f"choose one of: {', '.join(KINDS)}")
    if "between" in data:
        a, b = _two(data["between"])
        factors, algorithm = factors_between(a, b, roster, recipe), b
    else:
        factors = _factors(data.get("factors", {}), "factors")
    if not isinstance(algorithm, str):
        raise UsageError("design without algorithm", "the levels are changes of one", "algorithm: dapo")
    design: Design = parse(
        Design,
        {
            "kind": kind, "algorithm": algorithm, "factors": factors,
            "stress": _factors(data.get("stress", {}), "stress"),
            "extra": data.get("extra", {}) if kind == "factorial" else {},
        },
        "design",
    )  # fmt: skip
    return design


def _two(between: Any) -> tuple[str, str]:
    if not isinstance(between, (list, tuple)) or len(between) != 2:
        raise UsageError(f"between {between!r}", "a way leads from one algorithm to another", "between: [grpo, dapo]")
    return str(between[0]), str(between[1])


def _factors(data: Any, where: str) -> tuple[Factor, ...]:
    if not isinstance(data, Mapping) or not all(isinstance(levels, Mapping) for levels in data.values()):
        raise UsageError(f"design: {where}: {data!r}", "it maps factors to levels to changes",
                         "clip_higher: {without: {surrogate.high: 0.2}, with: {}}")  # fmt: skip
    return tuple(
        Factor(name=str(name), levels=tuple(_level(str(level), changes or {}) for level, changes in levels.items()))
        for name, levels in data.items()
    )


def _level(name: str, changes: Mapping[str, Any]) -> Level:
    recipe = {k.removeprefix("recipe."): v for k, v in changes.items() if k.startswith("recipe.")}
    backend = {k.removeprefix("backend."): v for k, v in changes.items() if k.startswith("backend.")}
    overrides = {k: v for k, v in changes.items() if not k.startswith(("recipe.", "backend.")) and k != "schedule"}
    data = {"name": name, "overrides": overrides, "recipe": recipe, "schedule": changes.get("schedule", ()),
            "backend": backend}  # fmt: skip
    level: Level = parse(Level, data, f"level {name}")
    return level


def factors_between(a: str, b: str, roster: Roster, recipe: Recipe) -> tuple[Factor, ...]:
    """One factor per slot in which two arms differ, from a's part to b's; levels are changes of b."""
    left, right = (_record(name, roster, recipe) for name in (a, b))
    found = []
    for slot in (*SCALARS, *SLOTS):
        if getattr(left, slot) != getattr(right, slot):
            found.append(_factor(slot, {slot: _value(left, slot)}, a, b))
    old, new = leaves(left), leaves(right)
    for path in (p for p in new if p.startswith(("updates.", "logp_noise.")) and old[p] != new[p]):
        found.append(_factor(path, {path: old[path]}, a, b))
    if not found:
        raise UsageError(f"{a} and {b}", "they do not differ in any slot", f"another algorithm; {near(b, SLOTS)}")
    return tuple(found)


def _factor(name: str, changes: dict[str, Any], a: str, b: str) -> Factor:
    return Factor(name=name, levels=(Level(name=a, overrides=changes), Level(name=b)))


def _record(name: str, roster: Roster, recipe: Recipe) -> Algorithm:
    arm = build_arm(name, roster, several_rosters=False)
    return resolve_algorithm(arm.algorithm, arm.overrides, recipe)


def _value(record: Algorithm, slot: str) -> Any:
    """A slot as an override takes it: kinds with their fields."""
    value = record.model_dump()[slot]
    return list(value) if slot in MANY else value
