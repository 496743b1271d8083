"""Names -> things. Parts, algorithms and tasks register here; plug-ins arrive through entry points."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from harness.core.errors import UsageError, near

if TYPE_CHECKING:
    from harness.core.algorithm import Algorithm
    from harness.core.parts import Part
    from harness.core.ports import Task
    from harness.core.search import Dimension

P = TypeVar("P", bound="type[Part]")

_PARTS: dict[str, dict[str, type[Part]]] = {}
_ALGORITHMS: dict[str, Callable[[], Algorithm]] = {}
_SPACES: dict[str, tuple[Dimension, ...]] = {}
_TASKS: dict[str, Callable[..., Task]] = {}
_loaded = False
LEARNED_REWARDS = {
    "model": ("harness.models.reward_model", "reward_model"),
    "judge": ("tasks.judge", "judge"),
}  # kind -> module and function that make the scorer
LEARNED = tuple(f"{kind}:" for kind in LEARNED_REWARDS)


def part(cls: P) -> P:
    """Class decorator: makes a part selectable by its `kind` inside its slot."""
    _PARTS.setdefault(cls.slot, {})[cls.kind] = cls
    return cls


def register_algorithm(name: str, build: Callable[[], Algorithm], space: Sequence[Dimension] = ()) -> None:
    """Adds a named preset; `build` returns the record, `space` is what a search varies in it besides the recipe."""
    _ALGORITHMS[name] = build
    _SPACES[name] = tuple(space)


def register_task(name: str, build: Callable[..., Task]) -> None:
    """Adds a named task; `build(argument, **params)` returns it (`argument` follows the colon in `name:argument`)."""
    _TASKS[name] = build


def _load() -> None:
    """Imports the bundled packages and every installed plug-in, once."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    importlib.import_module("algorithms")
    importlib.import_module("tasks")
    for group in ("harness.algorithms", "harness.tasks"):
        for point in entry_points(group=group):
            point.load()


def part_kinds(slot: str) -> dict[str, type[Part]]:
    """kind -> class for one slot."""
    _load()
    return _PARTS.get(slot, {})


def algorithm_names() -> list[str]:
    """All registered algorithm presets."""
    _load()
    return sorted(_ALGORITHMS)


def algorithm(name: str) -> Algorithm:
    """The record of a named preset."""
    _load()
    if name not in _ALGORITHMS:
        raise UsageError(f"algorithm {name!r}", "no preset of that name", near(name, _ALGORITHMS))
    return _ALGORITHMS[name]()


def search_space(name: str) -> tuple[Dimension, ...]:
    """The dimensions that a named preset has for itself in a search; empty where it ships none."""
    algorithm(name)
    return _SPACES[name]


def task_names() -> list[str]:
    """All registered task families."""
    _load()
    return sorted(_TASKS)


def build_task(name: str, params: dict[str, Any]) -> Task:
    """A task from `family`, `family:argument` or the path of a `.jsonl` or `.parquet` file.

    The parameter `reward_function`, with those that belong to it, has the user's function grade it, or a learned
    reward: `model:<id or path>`, `judge:<url>`. `attempts` lets the policy answer again.
    """
    _load()
    if params.get("attempts") is not None:
        tries = importlib.import_module("tasks.retried")
        given = {key: value for key, value in params.items() if key not in tries.PARAMS}
        return tries.retried(build_task(name, given), **{k: v for k, v in params.items() if k in tries.PARAMS})  # type: ignore[no-any-return]
    reward = params.get("reward_function")
    if str(reward).startswith(LEARNED):
        kind, _, where = str(reward).partition(":")
        module, make = LEARNED_REWARDS[kind]
        given = {k: v for k, v in params.items() if not k.startswith(("reward_", "judge_"))}
        options = {k: v for k, v in params.items() if k not in given and k != "reward_function"}
        scorer = getattr(importlib.import_module(module), make)(where, **options)
        return importlib.import_module("tasks.learned").learned(build_task(name, given), scorer)  # type: ignore[no-any-return]
    if reward is not None:
        rewards = importlib.import_module("tasks.rewarded")
        given = {key: value for key, value in params.items() if key not in rewards.PARAMS}
        return rewards.rewarded(build_task(name, given), **{k: v for k, v in params.items() if k in rewards.PARAMS})  # type: ignore[no-any-return]
    family, _, argument = name.partition(":")
    if family not in _TASKS and name.endswith((".jsonl", ".parquet")):
        family, argument = "jsonl", name
    if family not in _TASKS:
        raise UsageError(
            f"task {name!r}",
            "no task of that name, and no .jsonl or .parquet file",
            near(family, [*_TASKS, "<file>.jsonl"]),
        )
    return _TASKS[family](argument, **params)
