"""Names that a user gives -> the arms of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from algorithms.arms import ARMS, arm_overrides, equivalent_to
from algorithms.checks import refusals_for, warnings_for
from algorithms.rosters import overrides as roster_overrides
from harness.core.algorithm import Algorithm, leaves, override
from harness.core.errors import UsageError, near
from harness.core.ports import TaskInfo
from harness.core.registry import algorithm_names
from harness.core.resolve import resolve_algorithm
from harness.core.spec import ArmSpec, BackendSpec, Bracket, Recipe, Roster, SkippedArm, nested, parse
from harness.study.presets import merge

DISPLAY = {"ppo": "PPO", "grpo": "GRPO", "dapo": "DAPO", "gspo": "GSPO", "gspo_token": "GSPO-token", "gfpo": "GFPO",
           "canary_lr0": "Canary, lr 0", "rft": "RFT", "base": "Base model", "random_reward": "GRPO, random reward",
           "zero_mismatch": "GRPO, zero mismatch",
           "rloo": "RLOO", "cispo": "CISPO", "luspo": "LUSPO", "dr_grpo": "Dr. GRPO", "bnpo": "BNPO",
           "grpo_batch_std": "GRPO, batch std + token loss"}  # fmt: skip


def display_name(name: str) -> str:
    """`gspo_token_process` -> `GSPO-token process`."""
    for key in sorted(DISPLAY, key=len, reverse=True):
        if name == key or name.startswith(f"{key}_"):
            return f"{DISPLAY[key]} {name[len(key) + 1 :].replace('_', ' ')}".strip()
    return name.replace("_", " ")


def arm_names() -> list[str]:
    """Everything that may stand in --algorithms."""
    return sorted({*ARMS, *algorithm_names()})


def build_arm(name: str, roster: Roster, *, several_rosters: bool) -> ArmSpec:
    """An arm by its own name or by an algorithm's."""
    title = display_name(name) + (" (published)" if several_rosters and roster == "published" else "")
    if name in ARMS:
        known = ARMS[name]
        return ArmSpec(
            name=title,
            algorithm=known.algorithm,
            overrides=arm_overrides(name, roster),
            bracket=known.bracket,
            roster=roster,
            recipe=dict(known.recipe),
            backend=dict(known.backend),
        )
    if name not in algorithm_names():
        raise UsageError(f"algorithm {name!r}", "there is no arm or algorithm of that name", near(name, arm_names()))
    return ArmSpec(name=title, algorithm=name, overrides=roster_overrides(roster, name), roster=roster)


ARM_KEYS = ("arm", "name", "overrides", "recipe", "backend")


def arm_of(entry: Any, roster: Roster, *, several_rosters: bool, control: bool = False) -> ArmSpec:
    """An arm of a study file: a name, or `{arm: grpo, name: ..., overrides: ..., recipe: ..., backend: ...}`.

    One with a recipe or backend of its own belongs to the roster `stressed`, unless it is a control.
    """
    if not isinstance(entry, Mapping):
        return build_arm(entry, roster, several_rosters=several_rosters)
    unknown = [key for key in entry if key not in ARM_KEYS]
    if unknown or not isinstance(entry.get("arm"), str):
        what = f"unknown key {unknown[0]}" if unknown else "no arm to start from"
        raise UsageError(f"arm {dict(entry)}: {what}", "an arm is a name, or a change of a named one",
                         "{arm: grpo, name: GRPO noisy, overrides: {logp_noise.sd: 0.1}}")  # fmt: skip
    base = build_arm(entry["arm"], roster, several_rosters=several_rosters)
    own = {key: dict(entry[key] or {}) for key in ("recipe", "backend") if key in entry}
    data = base.model_dump() | own | {
        "name": entry.get("name", base.name),
        "overrides": {**base.overrides, **(entry.get("overrides") or {})},
        "bracket": "control" if control else base.bracket,
    }  # fmt: skip
    if any(own.values()) and data["bracket"] != "control":
        data["roster"] = "stressed"
    arm: ArmSpec = parse(ArmSpec, data, f"arm {data['name']}")
    return arm


def together(arms: Sequence[ArmSpec]) -> tuple[ArmSpec, ...]:
    """All ranked arms in the roster `stressed` where one of them is, so that they are compared with one another."""
    ranked = [arm for arm in arms if arm.bracket != "control"]
    if not any(arm.roster == "stressed" for arm in ranked):
        return tuple(arms)
    return tuple(a if a.bracket == "control" else a.model_copy(update={"roster": "stressed"}) for a in arms)


def apply_changes(arms: Sequence[ArmSpec], changes: Mapping[str, Any], recipe: Recipe) -> tuple[ArmSpec, ...]:
    """`ARM:path=value` changes one arm, `path=value` every arm that has another value there.

    `ARM:recipe.lr=...` and `ARM:backend.dtype=...` give the arm what the others have not. Changing none is an error.
    """
    result = list(arms)
    for key, value in changes.items():
        who, _, path = key.rpartition(":")
        touched = False
        for i, arm in enumerate(result):
            if who:
                wanted = who.lower() in (arm.name.lower(), arm.algorithm.lower())
            else:
                wanted = _leaves(arm, recipe).get(path, value) != value
            if wanted:
                own = bool(who) and path.startswith(("recipe.", "backend."))
                result[i] = _own(arm, path, value) if own else _changed(arm, path, value, recipe)
                touched = True
        if not touched:
            raise UsageError(f"--set {key}={value}", *_nowhere(who, path, result, recipe))
    return together(result)


def _own(arm: ArmSpec, path: str, value: Any) -> ArmSpec:
    """The arm with a recipe or backend value of its own."""
    section, _, rest = path.partition(".")
    data = arm.model_dump() | {section: {**getattr(arm, section), rest: value}}
    data["roster"] = arm.roster if arm.bracket == "control" else "stressed"
    changed: ArmSpec = parse(ArmSpec, data, f"arm {arm.name}")
    return changed


def _changed(arm: ArmSpec, path: str, value: Any, recipe: Recipe) -> ArmSpec:
    """The arm with another value; a value of the preset takes the roster's change away."""
    wanted = override(resolve_algorithm(arm.algorithm, arm.overrides, recipe), {path: value})
    without = {p: v for p, v in arm.overrides.items() if p != path}
    same = path in arm.overrides and resolve_algorithm(arm.algorithm, without, recipe) == wanted
    return arm.model_copy(update={"overrides": without if same else {**without, path: value}})


def _leaves(arm: ArmSpec, recipe: Recipe) -> dict[str, Any]:
    return leaves(resolve_algorithm(arm.algorithm, arm.overrides, recipe))


def _nowhere(who: str, path: str, arms: Sequence[ArmSpec], recipe: Recipe) -> tuple[str, str]:
    if who:
        return f"no arm is called {who!r}", near(who, [a.name for a in arms])
    known = {p for a in arms for p in _leaves(a, recipe)}
    if path in known:
        return "every arm that has the path has this value, so nothing would change", "leave it out"
    return "no arm has such a path", near(path, {*known, "recipe.<field>", "eval.<field>", "task.<field>"})


def check_arms(
    arms: Sequence[ArmSpec], recipe: Recipe, info: TaskInfo, *, run_equivalent: bool, named: bool
) -> tuple[tuple[ArmSpec, ...], tuple[SkippedArm, ...], list[str]]:
    """Arms to run, arms left out with the reason, and warnings. Refuses what cannot mean anything.

    `named`: the user asked for these very arms, so one that the task cannot serve is an error, not left out.
    """
    run: list[ArmSpec] = []
    skipped: list[SkippedArm] = []
    notes: list[str] = []
    for arm in arms:
        record = resolve_algorithm(arm.algorithm, arm.overrides, recipe)
        try:
            refusals_for(record, info)
        except UsageError as error:
            if named:
                raise
            skipped.append(SkippedArm(name=arm.name, reason=error.why))
            continue
        notes += [f"{arm.name}: {w}" for w in warnings_for(record, info)]
        arm, said = _in_its_bracket(arm, record)
        notes += said
        equal = equivalent_to(record)
        if equal is None or equal == arm.algorithm:
            run.append(arm)
        elif run_equivalent:
            run.append(arm.model_copy(update={"name": f"{arm.name} (identical to {display_name(equal)})"}))
        else:
            skipped.append(SkippedArm(name=arm.name, reason=f"identical to {display_name(equal)}"))
            if named and not info.credit:
                raise UsageError(
                    f"{arm.name} on task {info.name}",
                    "the task has no credit for parts of a response, so all tokens of a row share one advantage and "
                    f"{arm.name} is {skipped[-1].reason}: it would spend the budget on a second copy",
                    "leave it out, "
                    + ("name gspo_token_turns, " if info.max_turns > 1 else "")
                    + "or add --run-equivalent to run it all the same",
                )
    names = [a.name for a in run]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UsageError(
            f"arms named {', '.join(twice)} more than once", "rows could not be told apart", "name each once"
        )
    if not run:
        why = "; ".join(f"{arm.name} is left out: {arm.reason}" for arm in skipped) or "no algorithm was named"
        copies = any(arm.reason.startswith("identical to") for arm in skipped)
        instead = "name another algorithm" + (", or add --run-equivalent to run it all the same" if copies else "")
        raise UsageError("no arms to run", why, instead)
    return tuple(run), tuple(skipped), notes


def check_cells(arms: Sequence[ArmSpec], recipe: Recipe, info: TaskInfo) -> list[str]:
    """Warnings about the cells of a design, each said once. Refuses the design where a cell cannot be run."""
    said: dict[str, list[str]] = {}
    for arm in arms:
        record = resolve_algorithm(arm.algorithm, arm.overrides, recipe)
        refusals_for(record, info)
        for warning in warnings_for(record, info):
            said.setdefault(warning, []).append(arm.name)
    return [f"{cells[0] if len(cells) == 1 else f'{len(cells)} cells'}: {w}" for w, cells in said.items()]


def _in_its_bracket(arm: ArmSpec, record: Algorithm) -> tuple[ArmSpec, list[str]]:
    """The arm in the bracket of what it reads: an override may have given it more to read, or less."""
    reads: Bracket = "dense" if record.dense else "outcome"
    if arm.bracket in ("control", reads):
        return arm, []
    what = "reads rewards for parts of a response" if reads == "dense" else "reads the outcome only"
    return arm.model_copy(update={"bracket": reads}), [f"{arm.name} {what}, so it is ranked in the bracket {reads}."]


def records(arms: Sequence[ArmSpec], recipe: Recipe) -> dict[str, Algorithm]:
    """Arm name -> record, for component matrices and dry runs."""
    return {a.name: resolve_algorithm(a.algorithm, a.overrides, recipe) for a in arms}


def arm_backend(backend: BackendSpec, arm: ArmSpec) -> BackendSpec:
    """The study's backend with what an arm has for itself; UsageError for a path or value that does not exist."""
    if not arm.backend:
        return backend
    data = merge(backend.model_dump(), nested(arm.backend))
    changed: BackendSpec = parse(BackendSpec, data, f"backend of {arm.name}")
    return changed
