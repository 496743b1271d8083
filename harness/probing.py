"""The fixed tokens on which a run of a mixture of experts looks at its routes; kept in its folder for every resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.assemble import Assembly
from harness.core.errors import InfrastructureError
from harness.core.types import RolloutGroup
from harness.train.probe import RouteProbe, new_probe

FILE = "routing_probe.safetensors"
ROWS = 16  # validation responses of the initial policy


def probing(parts: Assembly, folder: Path, first: Sequence[RolloutGroup] | None) -> Assembly:
    """With the probe of the run's folder, or a new one from the validation responses `first` of the initial policy."""
    routers = parts.trainer.nets.routers
    if routers is None:
        return parts
    path = folder / FILE
    if first is None:
        probe = _read(path, parts) if path.exists() else None
    else:
        rows = [(t.prompt_ids, t.response_ids) for g in first[:ROWS] for t in g.trajectories[:1]]
        probe = new_probe(parts.model.policy, routers, rows, parts.model.pad_id)
        if probe is not None:
            _write(path, probe)
    return replace(parts, trainer=replace(parts.trainer, probe=probe))


def _write(path: Path, probe: RouteProbe) -> None:
    tensors = {"input_ids": probe.input_ids, "counts": probe.counts, "start": probe.start}
    temporary = path.with_suffix(".tmp")
    try:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise InfrastructureError(f"cannot write {path}: {error}; free space, then run the same command") from error


def _read(path: Path, parts: Assembly) -> RouteProbe:
    device: torch.device = parts.model.policy.device
    found = {k: v.to(device) for k, v in load_file(path).items()}
    routers = parts.trainer.nets.routers
    assert routers is not None
    return RouteProbe(input_ids=found["input_ids"], counts=found["counts"], start=found["start"], routers=routers)
