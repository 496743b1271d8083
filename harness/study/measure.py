"""Choices made by measurement, once per machine and model: dtype, threads, runs at a time. Cached."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import InfrastructureError, UsageError
from harness.core.results import write_atomic
from harness.core.spec import BackendSpec, ModelSpec, stable_hash

EMBEDDED = ("tiny",)  # far too small for a GPU, for bf16 or for a second thread: measured, see README


def cache_folder() -> Path:
    """Where measurements and converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_backend(model: ModelSpec, given: Mapping[str, Any]) -> tuple[BackendSpec, dict[str, Any]]:
    """Backend for a model on this machine, with what was measured; what the user gave is not measured."""
    if model.name in EMBEDDED:
        return BackendSpec.model_validate({"threads": 1, **given}), {}
    facts = measured(model)
    chosen: dict[str, Any] = {"device": "cuda" if facts["num_gpus"] else "cpu"}
    chosen["threads"] = available_cpus() if not facts["num_gpus"] else max(1, available_cpus() // facts["num_gpus"])
    seconds = facts["seconds"]
    chosen["dtype"] = min(seconds, key=seconds.__getitem__)
    return BackendSpec.model_validate(chosen | dict(given)), facts


def measured(model: ModelSpec) -> dict[str, Any]:
    """Seconds of a forward and backward per dtype, parameters, GPUs; from the cache where it was measured before."""
    key = stable_hash([model.model_dump(mode="json"), platform.node(), platform.processor(), available_cpus()])[:16]
    path = cache_folder() / "measured" / f"{key}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    code = subprocess.run(
        [sys.executable, "-m", "harness.models.measure", model.model_dump_json()],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(available_cpus())},
    )
    if code.returncode == UsageError.exit_code:
        raise UsageError(*json.loads(code.stdout.strip().splitlines()[-1]))
    if code.returncode:
        raise InfrastructureError(f"the model {model.name} could not be tried on this machine:\n{code.stderr[-2000:]}")
    facts = dict(json.loads(code.stdout.strip().splitlines()[-1]))
    write_atomic(path, json.dumps(facts))
    return facts
