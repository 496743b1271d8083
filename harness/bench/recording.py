"""Rollout batches and weights of a TRL run, as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.bench.trl_grpo import TrlSettings
from harness.core.shapes import Int, Tensor

BEFORE, AFTER = "before.", "after."
_PAD = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout batch as TRL sampled it: rows prompt by prompt, siblings together."""

    prompt_ids: tuple[tuple[int, ...], ...]  # per row
    response_ids: tuple[tuple[int, ...], ...]
    logp: tuple[tuple[float, ...], ...]  # under the weights that sampled, computed by TRL's trainer before its updates
    reward: tuple[float, ...]
    advantage: tuple[float, ...]  # TRL's
    mini_batches: tuple[tuple[int, ...], ...]  # rows of each optimizer step: TRL shuffles rows, not groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A TRL run: where it started, what it sampled, where it arrived."""

    settings: TrlSettings
    rollouts: tuple[Rollout, ...]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    grad_norms: tuple[float, ...]  # of each optimizer step, before clipping
    versions: Mapping[str, str]


def save(recording: Recording, path: Path) -> None:
    """One safetensors file; ids are padded with -1, settings and versions are its metadata."""
    tensors = {
        "prompt_ids": _padded([ids for r in recording.rollouts for ids in r.prompt_ids]),
        "response_ids": _padded([ids for r in recording.rollouts for ids in r.response_ids]),
        "logp": torch.cat([torch.tensor(line) for r in recording.rollouts for line in r.logp]),
        "reward": torch.tensor([x for r in recording.rollouts for x in r.reward]),
        "advantage": torch.tensor([x for r in recording.rollouts for x in r.advantage]),
        "order": torch.tensor([list(m) for r in recording.rollouts for m in r.mini_batches], dtype=torch.int32),
        "grad_norms": torch.tensor(recording.grad_norms, dtype=torch.float64),
        **{BEFORE + name: t.contiguous() for name, t in recording.before.items()},
        **{AFTER + name: t.contiguous() for name, t in recording.after.items()},
    }
    facts = {"settings": recording.settings.as_dict(), "versions": dict(recording.versions)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"recording": json.dumps(facts)})


def load(path: Path) -> Recording:
    """What `save` wrote."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["recording"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    given: dict[str, Any] = facts["settings"]
    settings = TrlSettings(**{**given, "betas": tuple(given["betas"])})
    size = settings.rows
    parts = range(0, len(tensors["reward"]), size)
    order = tensors["order"].reshape(len(parts), settings.mini_batches, -1).tolist()
    prompts, responses = _cut(tensors["prompt_ids"]), _cut(tensors["response_ids"])
    logp = [tuple(line.tolist()) for line in tensors["logp"].split([len(ids) for ids in responses])]
    return Recording(
        settings=settings,
        rollouts=tuple(
            Rollout(
                prompt_ids=tuple(prompts[start : start + size]),
                response_ids=tuple(responses[start : start + size]),
                logp=tuple(logp[start : start + size]),
                reward=tuple(tensors["reward"][start : start + size].tolist()),
                advantage=tuple(tensors["advantage"][start : start + size].tolist()),
                mini_batches=tuple(tuple(rows) for rows in order[number]),
            )
            for number, start in enumerate(parts)
        ),
        before=_under(tensors, BEFORE),
        after=_under(tensors, AFTER),
        grad_norms=tuple(tensors["grad_norms"].tolist()),
        versions=facts["versions"],
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _padded(lines: Sequence[Sequence[int]]) -> Int[Tensor, "B T"]:
    width = max(map(len, lines))
    return torch.tensor([[*line, *(_PAD,) * (width - len(line))] for line in lines], dtype=torch.int32)


def _cut(padded: Int[Tensor, "B T"]) -> list[tuple[int, ...]]:
    return [tuple(i for i in line if i != _PAD) for line in padded.tolist()]
