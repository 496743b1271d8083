"""An algorithm is a value made of parts: one slot per decision, no class hierarchy, no flags."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from harness.core.errors import UsageError, near
from harness.core.noise import LogpNoise
from harness.core.parts import (
    Admission,
    Advantage,
    Aggregate,
    Correction,
    Exclusion,
    Need,
    Part,
    Penalty,
    Ratio,
    Reward,
    Selection,
    Surrogate,
    Updates,
)
from harness.core.registry import part_kinds

SLOTS: dict[str, type[Part]] = {
    "admission": Admission,
    "selection": Selection,
    "exclusions": Exclusion,
    "rewards": Reward,
    "advantage": Advantage,
    "ratio": Ratio,
    "correction": Correction,
    "surrogate": Surrogate,
    "aggregate": Aggregate,
    "penalties": Penalty,
}
MANY = ("exclusions", "rewards", "penalties")  # slots that hold any number of parts, addressed by kind
SCALARS = ("siblings", "old_logp", "prompts_factor", "routing_replay")
Replay = Literal["off", "r2", "r3"]
"""Whose expert choices an update replays: nobody's; the trainer's under the old weights; the sampler's."""
INNER = tuple(slot for slot in SLOTS if slot not in MANY)  # a part's field of this name holds a part of that slot


class Algorithm(BaseModel):
    """All slots of one algorithm, each with its value spelled out."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    siblings: int  # G, responses per prompt
    admission: SerializeAsAny[Admission]
    selection: SerializeAsAny[Selection]
    rewards: tuple[SerializeAsAny[Reward], ...]
    advantage: SerializeAsAny[Advantage]
    ratio: SerializeAsAny[Ratio]
    surrogate: SerializeAsAny[Surrogate]
    aggregate: SerializeAsAny[Aggregate]
    penalties: tuple[SerializeAsAny[Penalty], ...]
    updates: Updates
    exclusions: tuple[SerializeAsAny[Exclusion], ...] = ()
    correction: SerializeAsAny[Correction] = Field(default_factory=lambda: _uncorrected())
    old_logp: Literal["train", "rollout"] = (
        "train"  # whose log-probs the ratio divides by: the trainer's, the sampler's
    )
    logp_noise: LogpNoise = LogpNoise()  # put into log-probs on purpose
    prompts_factor: int = 1  # prompts per rollout batch, relative to the recipe (PPO without siblings: G)
    # whose expert choices an update of a mixture of experts replays; auto: see `replay_mode`
    routing_replay: Literal["auto", "off", "r2", "r3"] = "auto"

    @field_validator(*(s for s in SLOTS if s not in MANY), mode="before")
    @classmethod
    def _one(cls, value: Any, info: Any) -> Any:
        return build_part(info.field_name, value)

    @field_validator(*MANY, mode="before")
    @classmethod
    def _many(cls, value: Any, info: Any) -> Any:
        parts = tuple(build_part(info.field_name, v) for v in value)
        kinds = [p.kind for p in parts]
        if len(set(kinds)) < len(kinds):
            raise UsageError(
                f"{info.field_name}: {kinds}", "a kind may stand in this slot once", "merge the repeated parts"
            )
        return parts

    @model_validator(mode="after")
    def _compatible(self) -> Algorithm:
        _refuse(self)
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Union of the parts' needs; it decides what the backbone provisions."""
        return frozenset().union(*(part.needs for part in self.parts()))

    @property
    def dense(self) -> bool:
        """Whether it reads rewards for parts of a response: process rewards, or those of turns."""
        return bool(self.needs & {"credit", "turns"})

    def parts(self) -> tuple[Part, ...]:
        """All parts, in slot order."""
        found: list[Part] = []
        for slot in SLOTS:
            value = getattr(self, slot)
            found.extend(value if slot in MANY else (value,))
        return tuple(found)


def _uncorrected() -> Correction:
    part = build_part("correction", "none")
    assert isinstance(part, Correction)
    return part


def _refuse(a: Algorithm) -> None:
    """Combinations that cannot mean anything."""
    if a.siblings < 1:
        raise UsageError(f"siblings={a.siblings}", "a prompt needs at least one response", "siblings >= 1")
    if a.advantage.group_relative and a.siblings < 2:
        raise UsageError(
            f"{a.name} with siblings={a.siblings}",
            f"advantage {a.advantage.kind!r} compares a response with its siblings, and a group of one has none, "
            "so every advantage would be 0",
            "siblings of 4 or more, or algorithm ppo, whose critic replaces the siblings",
        )
    paid = [p.kind for p in a.penalties if p.in_reward and p.weight]
    if paid and not a.advantage.reads_token_reward:
        raise UsageError(
            f"{a.name}: penalties {paid} in the reward with advantage {a.advantage.kind!r}",
            "this advantage reads one reward per response, so a penalty per token would not be read",
            "penalties.kl.place=loss, or advantage=gae",
        )
    averaged = [p.kind for p in a.penalties if p.in_reward and p.aggregate is not None]
    if averaged:
        raise UsageError(
            f"{a.name}: penalties {averaged} in the reward with an aggregate of their own",
            "what is taken from the reward stays per token, so the aggregate would not be read",
            f"penalties.{averaged[0]}.place=loss, or without penalties.{averaged[0]}.aggregate",
        )
    if "components" in a.needs and a.rewards:
        raise UsageError(
            f"{a.name}: rewards {[p.kind for p in a.rewards]} with advantage {a.advantage.kind!r}",
            "this advantage is made of the task's reward components, so the shaped reward would not be read",
            "rewards=[], or advantage=group",
        )
    if a.old_logp == "rollout" and a.admission.carries:
        raise UsageError(
            f"{a.name}: old_logp=rollout with admission.carry_over",
            "prompts carried over were sampled under older weights, so their ratio would span two rollout batches",
            "old_logp=train, or admission.carry_over=false",
        )
    if a.old_logp == "rollout" and a.correction.active:
        raise UsageError(
            f"{a.name}: old_logp=rollout with correction {a.correction.kind!r}",
            "the correction weighs the trainer's old log-probs against the sampler's, and here they are the same",
            "old_logp=train, or correction=none",
        )
    if any(not e.counted for e in a.exclusions) and not hasattr(a.selection, "k"):
        raise UsageError(
            f"{a.name}: exclusions {[e.kind for e in a.exclusions]} with selection {a.selection.kind!r}",
            "the selection keeps every response, so there is nothing to exclude",
            "selection=shortest, or without the exclusion",
        )
    k = getattr(a.selection, "k", None)
    if k is not None and k > a.siblings:
        raise UsageError(
            f"{a.name}: selection keeps k={k} of G={a.siblings}",
            "it cannot keep more responses than were sampled",
            f"selection.k <= {a.siblings}, or siblings >= {k}",
        )
    if k == a.siblings and "k" in type(a.selection).model_fields:  # a derived k is only an upper bound
        warnings.warn(f"{a.name}: k = G = {k} keeps every response, so it equals its base", stacklevel=2)


def build_part(slot: str, value: Any) -> Part:
    """A part from a part, a kind name, or a mapping with `kind` and fields; parts inside it likewise."""
    if isinstance(value, Part):
        return value
    kinds = part_kinds(slot)
    if not isinstance(value, str | Mapping):
        raise UsageError(f"{slot}: {value!r}", "a part is its kind, or a mapping with kind and fields", near("", kinds))
    fields = {"kind": value} if isinstance(value, str) else dict(value)
    kind = fields.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"{slot}: {kind!r}", "no part of that kind is known in this slot", near(str(kind), kinds))
    fields |= {f: build_part(f, v) for f, v in fields.items() if f in INNER and v is not None}
    try:
        return kinds[kind](**fields)
    except ValidationError as error:
        raise _field_error(f"{slot}.{kind}", error, sorted(kinds[kind].model_fields)) from None


def _field_error(where: str, error: ValidationError, fields: list[str]) -> UsageError:
    first = error.errors()[0]
    name = ".".join(str(x) for x in first["loc"]) or "value"
    return UsageError(
        f"{where}.{name} = {first.get('input')!r}",
        str(first["msg"]),
        near(name, fields) if first["type"] == "extra_forbidden" else f"fields of {where}: {', '.join(fields)}",
    )


def leaves(algorithm: Algorithm) -> dict[str, Any]:
    """Dotted path -> value of everything that can be overridden; the kind of a slot stands at the slot's path."""
    flat: dict[str, Any] = {name: getattr(algorithm, name) for name in SCALARS}
    for slot in SLOTS:
        value = getattr(algorithm, slot)
        if slot in MANY:
            flat[slot] = [p.kind for p in value]
            for part in value:
                flat |= _fields(f"{slot}.{part.kind}", part)
        else:
            flat |= {slot: value.kind, **_fields(slot, value)}
    for name, value in (("updates", algorithm.updates), ("logp_noise", algorithm.logp_noise)):
        flat |= {f"{name}.{field}": getattr(value, field) for field in type(value).model_fields}
    return flat


def _fields(path: str, part: Part) -> dict[str, Any]:
    """Dotted path -> value of a part's fields; a part inside it is a kind with fields of its own."""
    flat: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Part):
            flat |= {f"{path}.{name}": value.kind, **_fields(f"{path}.{name}", value)}
        else:
            flat[f"{path}.{name}"] = value
    return flat


def override(algorithm: Algorithm, changes: Mapping[str, Any]) -> Algorithm:
    """A new record with dotted paths changed, e.g. `{"ratio": "sequence", "surrogate.high": 0.28}`.

    `exclusions`, `rewards` and `penalties` are addressed by kind: `penalties.kl.coef`; `{"penalties.kl": None}` removes
    one, `{"penalties.kl": {...}}` adds or replaces one. Shorter paths apply first. A path that does not exist, or a
    change that changes nothing, is an error.
    """
    data = algorithm.model_dump()
    for path in sorted(changes, key=lambda p: p.count(".")):
        before = _rebuild(data, algorithm.name)
        data = _changed(data, path, changes[path], before)
        after = _rebuild(data, algorithm.name)
        if after == before:
            raise UsageError(
                f"override {path}={changes[path]!r}",
                f"{algorithm.name} already has this value, so the override changes nothing",
                "leave it out",
            )
        data = after.model_dump()
    return _rebuild(data, algorithm.name)


def _rebuild(data: Mapping[str, Any], name: str) -> Algorithm:
    try:
        return Algorithm.model_validate(data)
    except ValidationError as error:
        raise _field_error(name, error, sorted(Algorithm.model_fields)) from None


def _changed(data: dict[str, Any], path: str, value: Any, current: Algorithm) -> dict[str, Any]:
    head, *rest = path.split(".")
    known = [*leaves(current)] + [f"{slot}.{kind}" for slot in MANY for kind in part_kinds(slot)]
    if head in MANY and len(rest) == 1 and rest[0] in part_kinds(head):
        others = [p for p in data[head] if p["kind"] != rest[0]]
        added = [] if value is None else [{"kind": rest[0], **(value if isinstance(value, Mapping) else {})}]
        return {**data, head: others + added}
    if path not in known:
        raise UsageError(f"override {path}", f"{current.name} has no such path", near(path, known))
    if head in MANY:
        if not rest:
            return {**data, head: list(value or [])}
        parts = [_with(p, rest[1:], value) if p["kind"] == rest[0] else p for p in data[head]]
        return {**data, head: parts}
    return _with(data, [head, *rest], value)


def _with(data: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The nested mapping with another value at a path."""
    head, *rest = path
    return {**data, head: _with(data[head], rest, value) if rest else value}


def difference(a: Algorithm, b: Algorithm) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value in a, value in b) wherever two records differ; a missing path is None."""
    left, right = leaves(a), leaves(b)
    paths = [p for p in {**left, **right} if left.get(p) != right.get(p)]
    return {p: (left.get(p), right.get(p)) for p in paths}


def component_matrix(algorithms: Mapping[str, Algorithm]) -> dict[str, dict[str, str]]:
    """Slot -> arm -> short description, e.g. `clip(low=0.2, high=0.28)`; only what reports and README print."""
    return {
        slot: {arm: describe_slot(a, slot) for arm, a in algorithms.items()} for slot in ("siblings", *SLOTS, "updates")
    }


def describe_slot(algorithm: Algorithm, slot: str) -> str:
    """One slot in words."""
    value = getattr(algorithm, slot)
    if isinstance(value, tuple):
        return " + ".join(_describe(p) for p in value) or "none"
    return _describe(value) if isinstance(value, Part) else str(value)


def _describe(part: Part) -> str:
    values = {name: getattr(part, name) for name in type(part).model_fields}
    fields = ", ".join(f"{name}={_describe(v) if isinstance(v, Part) else v}" for name, v in values.items())
    return f"{part.kind}({fields})" if fields else part.kind


def replay_mode(algorithm: Algorithm, *, moe: bool) -> Replay:
    """What `auto` means: r2 for token-level ratios on a mixture of experts, off for sequence ratios and dense models.

    Source: GSPO (2507.18071) section 5.3, which trains GRPO with replay and GSPO without.
    """
    if algorithm.routing_replay != "auto":
        return algorithm.routing_replay
    return "r2" if moe and algorithm.ratio.per_token else "off"
