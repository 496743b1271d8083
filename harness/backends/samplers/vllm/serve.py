"""The command that starts an engine server as `ServerEngine` needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.backends.samplers.vllm.local import BLOCK_ON_CPU, GIB
from harness.backends.samplers.vllm.worker import EXTENSION

ENVIRONMENT: Final = {
    "VLLM_SERVER_DEV_MODE": "1",  # the routes for weights, seeds and versions
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
ON_CPU: Final = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two servers would share a core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's process does the work itself, with the threads it is given
    "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled, so no compiler is needed
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What a server runs, and where."""

    folder: Path  # configuration and tokenizer
    device: str
    dtype: str
    threads: int
    kv_cache_gib: float
    gpu_memory: float
    host: str
    port: int


def command(options: ServeOptions) -> list[str]:
    """Arguments of the process, its program first."""
    o = options
    arguments = [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(o.folder),
        "--load-format", "dummy",
        "--generation-config", "vllm",
        "--dtype", o.dtype,
        "--max-model-len", "-1",
        "--logprobs-mode", "processed_logprobs",
        "--enable-prefix-caching",
        "--enable-scale-out",
        "--worker-extension-cls", EXTENSION,
        "--disable-log-stats",
        "--uvicorn-log-level", "warning",
        "--host", o.host,
        "--port", str(o.port),
    ]  # fmt: skip
    if o.device.startswith("cuda"):
        transfer = json.dumps({"backend": "nccl"})
        return [*arguments, "--gpu-memory-utilization", str(o.gpu_memory), "--weight-transfer-config", transfer]
    cache = str(int(o.kv_cache_gib * GIB))
    return [*arguments, "--kv-cache-memory-bytes", cache, "--block-size", str(BLOCK_ON_CPU), "--enforce-eager"]


def environment(options: ServeOptions, outer: Mapping[str, str]) -> dict[str, str]:
    """Environment of the process."""
    threads = str(options.threads)
    own = ENVIRONMENT | {"VLLM_LOGGING_LEVEL": outer.get("VLLM_LOGGING_LEVEL", "WARNING")}
    if not options.device.startswith("cuda"):
        own |= ON_CPU | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return {**outer, **own}
