"""Checkpoints: everything that resuming needs, in safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.core.checkpoints import STATE, leftovers, listed, name_of
from harness.core.errors import InfrastructureError, UsageError
from harness.core.results import dumps
from harness.core.shapes import Tensor
from harness.train.carried import pack, unpack
from harness.train.loop import Progress
from harness.train.optimizer import Optimizer
from harness.train.update import Optimizers

steps = listed  # complete checkpoints in a folder, oldest first


def save(folder: Path, progress: Progress, optimizers: Optimizers, extra: Mapping[str, Any]) -> Path:
    """Writes `<folder>/<step>`, where that is not there yet, and clears away what interruptions left behind."""
    target = folder / name_of(progress.step)
    if target.exists():
        return target
    temporary = folder / f".{target.name}.tmp"
    try:
        for old in leftovers(folder):
            shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_contiguous(optimizers.policy.tensors()), temporary / "policy.safetensors")
        if optimizers.critic is not None:
            save_file(_contiguous(optimizers.critic.tensors()), temporary / "critic.safetensors")
        save_file({"torch": torch.get_rng_state()}, temporary / "rng.safetensors")
        if progress.carried:
            tensors, text = pack(progress.carried)
            save_file(tensors, temporary / "carried.safetensors")
            (temporary / "carried.json").write_text(text, encoding="utf-8")
        counters = asdict(replace(progress, carried=()))
        state = {"schema_version": 1, "progress": counters, **extra}
        (temporary / STATE).write_text(dumps(state), encoding="utf-8")
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InfrastructureError(
            f"cannot write checkpoint {target}: {error}; free space, then run the same command to continue"
        ) from error
    return target


def load(
    path: Path, optimizers: Optimizers, *, moments: bool = True, critic: bool = True
) -> tuple[Progress, dict[str, Any]]:
    """Restores networks, optimizers and random state; returns the counters and whatever else was saved."""
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    _restore(optimizers.policy, path / "policy.safetensors", moments)
    if critic and optimizers.critic is not None:
        _restore(optimizers.critic, path / "critic.safetensors", moments)
    torch.set_rng_state(load_file(path / "rng.safetensors")["torch"])
    counters = {"history_of": "group_means", **state.pop("progress")}  # the only history before it had a name
    groups = path / "carried.safetensors"
    carried = unpack(load_file(groups), (path / "carried.json").read_text(encoding="utf-8")) if groups.exists() else ()
    return Progress(**{**counters, "history": tuple(counters["history"]), "carried": carried}), state


def _restore(optimizer: Optimizer, file: Path, moments: bool) -> None:
    if not file.exists():
        raise UsageError(f"{file}: missing", "the run that wrote it had no critic", "start.reset: [critic]")
    tensors = load_file(file)
    shapes = {name: tuple(tensors[f"weight.{name}"].shape) for name in optimizer.names if f"weight.{name}" in tensors}
    if shapes != optimizer.shapes():
        raise UsageError(f"{file}", "its weights belong to another model", "a checkpoint of the same model")
    optimizer.load(tensors, moments=moments)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().contiguous().clone() for name, t in tensors.items()}
