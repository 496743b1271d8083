"""Peak memory of a process and what it is made of."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from torch import nn

MIB = 2**20
STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """Largest resident size this process has had.

    From /proc where there is one: getrusage's number survives exec, so that a child would begin with its parent's.
    """
    found = _status("VmHWM")
    return found if found is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Resident size now; the peak where the system does not tell."""
    found = _status("VmRSS")
    return found if found is not None else peak_mib()


def _status(key: str) -> float | None:
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), None)


def kv_cache_mib(config: Any, rows: int, positions: int, item_bytes: int) -> float:
    """Keys and values: rows x positions x layers x 2 x KV heads x head size x bytes."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = rows * positions * config.num_hidden_layers * 2 * heads * size
    return float(numbers * item_bytes / MIB)


def training_mib(model: nn.Module, *, masters: bool, moment_bytes: int = 4) -> dict[str, float]:
    """Weights, gradients of their type, AdamW's two moments and, with `masters`, float32 weights of its own."""
    sizes = [(p.numel(), p.element_size()) for p in model.parameters() if p.requires_grad]
    numbers = sum(n for n, _ in sizes)
    weights = sum(n * size for n, size in sizes) / MIB
    found = {"weights": weights, "gradients": weights, "optimizer": 2 * moment_bytes * numbers / MIB}
    if masters:
        found["optimizer"] += 4 * numbers / MIB
    return found


def account(peak: float, imports: float, parts: dict[str, float]) -> dict[str, float]:
    """The peak split into what is known by size and the rest: activations, logits, buffers."""
    return {"peak": peak, "imports": imports, **parts, "rest": peak - imports - sum(parts.values())}
