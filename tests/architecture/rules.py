"""Who may import whom, as data, and what is refused where. CONTRIBUTING.md has the same in prose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.architecture.source import PACKAGES, Import, Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One part of the project and what it may import of ours (itself always)."""

    modules: tuple[str, ...]  # dotted prefixes
    may: tuple[str, ...] = ()  # dotted prefixes
    may_lazily: tuple[str, ...] = ()  # only inside functions and for annotations
    anything: bool = False


CORE = ("harness.core",)
ROSTERS = ("algorithms.arms", "algorithms.rosters", "algorithms.checks")  # named arms and what is known about them
ROOMS = {
    "version": Room(modules=("harness",)),  # harness/__init__.py itself; everyone may read the version
    "core": Room(modules=CORE),
    "stats": Room(modules=("harness.stats",)),
    "algorithms": Room(modules=("algorithms",), may=CORE),
    "tasks": Room(modules=("tasks",), may=CORE),
    "rollout": Room(modules=("harness.rollout",), may=CORE),
    "train": Room(modules=("harness.train",), may=CORE),
    "validity": Room(modules=("harness.validity",), may=CORE),
    "monitor": Room(modules=("harness.monitor",), may=CORE),
    "detectors": Room(  # the part of the monitor that works without torch
        modules=tuple(
            f"harness.monitor.{name}"
            for name in (
                "detectors",
                "machine",
                "onset",
                "outcome",
                "replay",
                "scores",
                "series",
                "severity",
                "smooth",
                "view",
                "watch",
            )
        ),
        may=CORE,
    ),
    "models": Room(modules=("harness.models",), may=(*CORE, "harness.presets")),
    "backends": Room(modules=("harness.backends",), may=CORE),
    "evaluate": Room(modules=("harness.evaluate",), may=(*CORE, "harness.stats")),
    "presets": Room(modules=("harness.presets",), may=CORE),
    "run": Room(
        modules=(
            "harness.run",
            "harness.assemble",
            "harness.records",
            "harness.saving",
            "harness.probing",
            "harness.gate",
            "harness.selftest",
            "harness.watching",
        ),
        may=(
            *CORE,
            "harness.rollout",
            "harness.train",
            "harness.monitor",
            "harness.evaluate",
            "harness.validity",
            "algorithms",
            "tasks",
        ),
        may_lazily=("harness.models", "harness.backends"),
    ),
    "study": Room(
        modules=("harness.study",),
        may=(*CORE, "harness.run", "harness.stats", "harness.presets", *ROSTERS),
    ),
    "conform": Room(
        modules=("harness.conform",),
        may=(*CORE, "harness.train.objective", "harness.rollout.refill", "algorithms"),
    ),
    "microscope": Room(
        modules=("harness.microscope",),
        may=(*CORE, "harness.train", "harness.study.arms", *ROSTERS),
        may_lazily=("harness.models",),
    ),
    "validate": Room(
        modules=("harness.validate",),
        may=(*CORE, "harness.monitor", "harness.stats", "harness.study.arms"),
    ),
    "report": Room(
        modules=("harness.report",),
        may=(
            "harness.core.results",
            "harness.core.columns",
            "harness.core.metrics",
            "harness.core.errors",
            "harness.core.scores",
            "harness.core.ablation",
            "harness.core.search",
            "harness.core.lock",
            "harness.core.benchmarks",
            "harness.core.routing_log",
            "harness.stats",
            "harness.validity",
        ),
    ),
    "foreign": Room(modules=("harness.foreign",), may=CORE),
    "cli": Room(modules=("harness.cli", "harness.commands", "harness.__main__"), anything=True),
    "bench": Room(modules=("harness.bench",), anything=True),
}

# (module, imported) -> why. They hold for imports inside functions and for annotations only.
EXCEPTIONS = {
    ("harness.core.registry", "algorithms"): "loads the bundled presets by name, as it loads plug-ins",
    ("harness.core.registry", "tasks"): "the same for tasks",
    ("harness.models.coldstart", "tasks"): "offline tool that makes the shipped cold starts out of the task's text",
    ("harness.models.coldstart_turns", "tasks"): "the same for the two games",
    ("harness.models.coldstart_moe", "tasks"): "the load of the experts is measured on answers of chain",
}

# Third party -> modules that may import it, lazily or not.
FENCES = {
    "vllm": ("harness.backends.*vllm*",),
    "ray": ("harness.backends.*ray*",),
    "mlflow": ("harness.backends.*mlflow*",),
    "optuna": ("harness.study*",),
    "matplotlib": ("harness.report*",),
    "seaborn": ("harness.report*",),
    "plotly": ("harness.report*",),
    "jinja2": ("harness.report*", "harness.evaluate.grader"),
    "pandas": ("harness.report*", "harness.stats*"),
    "scipy": ("harness.stats*",),
    "statsmodels": ("harness.stats*",),
    "typer": ("harness.cli*", "harness.commands*"),
    "click": ("harness.cli*", "harness.commands*"),
    "rich": ("harness.cli*", "harness.commands*", "harness.study*"),
    "msgspec": ("harness.core.columns",),
    "gguf": ("harness.models*",),
    "peft": ("harness.models*",),
    "fastdigest": ("algorithms.parts.tdigest",),
    "reasoning_gym": ("tasks*",),
    "lm_eval": ("harness.evaluate*",),
    "datasets": ("harness.evaluate*", "harness.bench*", "tasks.sources"),
    "pyarrow": ("tasks.sources",),
    "math_verify": ("tasks.graders.mathematics",),
    "sympy": ("tasks.graders.mathematics", "tasks.reasoning_gym"),
    "trl": ("harness.bench*",),
    "jaxtyping": ("harness.core.shapes",),
    "beartype": (),
}

# Rooms that must not know of these at all.
WITHOUT = {
    "stats": ("torch", "transformers"),
    "report": ("torch", "transformers"),
    "validity": ("torch", "transformers", "numpy"),
    "study": ("torch", "transformers"),
    "foreign": ("torch", "transformers"),
    "detectors": ("torch", "transformers"),
    "validate": ("torch", "transformers"),
    "core": ("transformers",),
    "algorithms": ("transformers", "numpy"),
    "tasks": ("torch", "transformers"),
}

# The path run -> rollout -> train loads these when imported, and nothing else; the last three come with transformers.
LEAN_ROOMS = ("core", "rollout", "train", "monitor", "detectors", "validity", "evaluate", "run")
LEAN = ("torch", "transformers", "pydantic", "numpy", "safetensors", "yaml")


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the prefixes or below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def room_of(name: str) -> str | None:
    """The room a module belongs to; the longest prefix decides."""
    if name == "harness":
        return "version"
    fitting = [(len(p), room) for room, r in ROOMS.items() if room != "version" for p in r.modules if under(name, (p,))]
    return max(fitting)[1] if fitting else None


def ours(name: str) -> bool:
    """Whether a dotted name is part of this project."""
    return under(name, PACKAGES)


def forbidden_imports(module: Module) -> Iterator[str]:
    """Breaches of the import directions, each with what to do."""
    room_name = room_of(module.name)
    if room_name is None:
        yield f"{module.at(1)}: {module.name} is in no room; put it into one, or add a room to {__name__}"
        return
    room = ROOMS[room_name]
    for imported in module.imports:
        target = imported.target
        if not ours(target) or room.anything or target == "harness" or room_of(target) == room_name:
            continue
        later = imported.lazy or imported.typing_only
        if under(target, room.may) or (later and (under(target, room.may_lazily) or _excepted(module, target))):
            continue
        hint = "import it inside the function that needs it" if under(target, room.may_lazily) else f"may: {room.may}"
        yield f"{module.at(imported.line)}: {room_name} must not import {target} here ({hint})"


def _excepted(module: Module, target: str) -> bool:
    return any(module.name == name and under(target, (allowed,)) for name, allowed in EXCEPTIONS)


def foreign_imports(module: Module) -> Iterator[str]:
    """Third parties outside their fence, in a room that must not know them, or on the lean path."""
    room = room_of(module.name)
    for imported in module.imports:
        name = imported.target.partition(".")[0]
        if name in PACKAGES or name in sys.stdlib_module_names:
            continue
        where = f"{module.at(imported.line)}: {imported.target}"
        if name in FENCES and not any(fnmatchcase(module.name, pattern) for pattern in FENCES[name]):
            yield f"{where} is imported outside its fence ({', '.join(FENCES[name]) or 'nowhere'})"
        if name in WITHOUT.get(room or "", ()):
            yield f"{where} is imported, and {room} does without {name}"
        if room in LEAN_ROOMS and _at_import_time(imported) and name not in LEAN:
            yield f"{where} is loaded with {room}; run -> rollout -> train loads only {', '.join(LEAN)}"


def _at_import_time(imported: Import) -> bool:
    return not (imported.lazy or imported.typing_only or imported.optional)
