"""Choices made by measurement, once per machine and model: dtype, attention, experts, threads, runs at a time."""

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

FACTS = 3  # version of what is measured
MIXTURES = {"tiny-moe": {"experts": 8, "top_k": 2}, "tiny-moe-32": {"experts": 32, "top_k": 8}}
EMBEDDED = ("tiny", "tiny-turns", *MIXTURES)  # too small for a GPU, for bf16 or a second thread: measured, see README
EMBEDDED_EXPERTS = "grouped_mm"  # measured too: see harness.models.experts


def cache_folder() -> Path:
    """Where measurements and converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_backend(model: ModelSpec, given: Mapping[str, Any]) -> tuple[BackendSpec, dict[str, Any]]:
    """Backend for a model on this machine, with what was measured; what the user gave is not measured.

    The facts of a mixture of experts say how large it is: `moe` with `layers` (that have a router), `experts`, `top_k`.
    """
    if model.name in MIXTURES:
        moe = {"layers": model.params.get("layers", 2), **MIXTURES[model.name]}
        fixed = {"threads": 1, "experts": EMBEDDED_EXPERTS, "routers": moe["layers"]}
        return with_engine_dtype(BackendSpec.model_validate(fixed | dict(given))), {"moe": moe}
    if model.name in EMBEDDED:
        return with_engine_dtype(BackendSpec.model_validate({"threads": 1, **given})), {}
    facts = measured(model)
    chosen: dict[str, Any] = {"device": "cuda" if facts["num_gpus"] else "cpu"}
    chosen["threads"] = available_cpus() if not facts["num_gpus"] else max(1, available_cpus() // facts["num_gpus"])
    seconds = facts["seconds"]
    chosen["dtype"] = min(seconds, key=seconds.__getitem__)
    chosen["attention"] = facts["attention"]
    chosen["routers"] = 0 if facts["moe"] is None else facts["moe"]["layers"]
    tried = facts["experts"].get(given.get("dtype", chosen["dtype"]))
    if tried:
        work = "step" if given.get("sampler", "transformers") == "transformers" else "update"
        chosen["experts"] = min(tried, key=lambda name: tried[name][work])
    update = {"share_prompts": facts["can_share"], **given.get("update", {})}
    return with_engine_dtype(BackendSpec.model_validate(chosen | dict(given) | {"update": update})), facts


def with_engine_dtype(backend: BackendSpec) -> BackendSpec:
    """The same with the dtype of a rollout engine spelled out, for the record."""
    if backend.sampler == "transformers" or backend.engine.dtype is not None:
        return backend
    return backend.model_copy(update={"engine": backend.engine.model_copy(update={"dtype": backend.dtype})})


def kept_backend(known: BackendSpec, given: BackendSpec) -> BackendSpec:
    """The choices a study was begun with. Only where a server is found may change; anything else is refused."""
    asked, had = given.model_dump(exclude_unset=True), known.model_dump()
    engine, update = asked.pop("engine", {}), asked.pop("update", {})
    place = {key: engine.pop(key) for key in ("server", "transfer", "folder") if key in engine}
    if "server" in place:
        asked["served"], had["served"] = place["server"] is not None, known.engine.server is not None
    for prefix, values, olds in (
        ("", asked, had),
        ("engine.", engine, had["engine"]),
        ("update.", update, had["update"]),
    ):
        for key, value in values.items():
            if value != olds[key]:
                raise UsageError(
                    f"backend.{prefix}{key} = {value}",
                    f"the study of that name was begun with {olds[key]}, and its runs must not be mixed with others",
                    "another --name, or the settings it was begun with",
                )
    return known.model_copy(update={"engine": known.engine.model_copy(update=place)})


def measured(model: ModelSpec) -> dict[str, Any]:
    """Seconds per dtype and experts' backend, parameters, GPUs, what the layers allow; cached."""
    key = stable_hash([FACTS, model.model_dump(mode="json"), platform.node(), platform.processor(), available_cpus()])[
        :16
    ]
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
