"""The smallest real runs: the embedded model, a few prompts per step, a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from algorithms.arms import ARMS, arm_overrides
from harness import NUMERICS_VERSION
from harness.core.metrics import WALLCLOCK_COLUMNS
from harness.core.results import EVALS, EVENTS, RESULT, SAMPLES, SPEC, STEPS, read_lines, write_atomic
from harness.core.routing_log import ROUTING
from harness.core.spec import RunSpec
from harness.models.recipes import recipe
from harness.study.presets import merge
from harness.train import checkpoint

TIMES = ("wallclock_s",)


def run_spec(arm: str = "grpo", *, steps: int = 4, seed: int = 0, **changes: Any) -> RunSpec:
    """A run of an arm of the matched roster; `changes` merge into the fields of RunSpec."""
    data: dict[str, Any] = {
        "numerics_version": NUMERICS_VERSION,
        "arm": arm,
        "algorithm": ARMS[arm].algorithm,
        "overrides": arm_overrides(arm, "matched"),
        "bracket": ARMS[arm].bracket,
        "task": {"name": "chain"},
        "model": {"name": "tiny"},
        "recipe": {**recipe("tiny"), "prompts_per_step": 4, **ARMS[arm].recipe},
        "budget": {"steps": steps},
        "seed": seed,
        "eval": {"points": 2, "prompts": 8, "final_prompts": 16},
    }
    return RunSpec.model_validate(merge(data, changes))


def make_folder(spec: RunSpec, parent: Path) -> Path:
    """The run's folder with its spec.json, as an executor leaves it to a worker."""
    folder = parent / spec.run_id
    folder.mkdir(parents=True)
    write_atomic(folder / SPEC, spec.model_dump_json())
    return folder


def numbers_of(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on where, when and how often interrupted it ran."""
    rows = [{k: v for k, v in r.items() if k not in WALLCLOCK_COLUMNS} for r in read_lines(folder / STEPS)]
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    machine = ("wallclock_s", "peak_memory_mib", "memory_after_import_mib", "resumes", "provenance")
    return {
        "steps": rows,
        "evals": [*read_lines(folder / EVALS)],
        "samples": [*read_lines(folder / SAMPLES)],
        "routing": [*read_lines(folder / ROUTING)],
        "events": [{**e, "checkpoint_last_healthy": None} for e in read_lines(folder / EVENTS)],
        "result": {k: v for k, v in result.items() if k not in machine},
        "rollouts": {p.name: p.stat().st_size for p in sorted((folder / "rollouts").glob("*"))},
        "weights": weights_of(folder),
    }


def weights_of(folder: Path) -> dict[str, list[float]]:
    """All tensors of the last checkpoint, bit for bit."""
    found = checkpoint.steps(folder / "checkpoints")
    files = sorted(found[-1].glob("*.safetensors")) if found else []
    tensors = {f"{f.name}:{name}": t for f in files for name, t in load_file(f).items()}
    return {name: t.flatten().tolist() for name, t in tensors.items()}
