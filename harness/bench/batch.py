"""A rollout batch of natural lengths, recorded once, on which updates are measured: SmolLM2-135M on chain-sum.

`recorded/chain_sum.safetensors` holds 16 prompts x 16 responses; `scripts/record_bench_batch.py` made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.shapes import Tensor
from harness.core.types import Grade, Prompt, RolloutGroup, Trajectory

RECORDED = Path(__file__).parent / "recorded" / "chain_sum.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalBatch:
    """Siblings by prompt: `responses[p][g]`, with their behaviour log-probs and rewards."""

    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[tuple[int, ...], ...], ...]
    logp: tuple[tuple[tuple[float, ...], ...], ...]
    rewards: tuple[tuple[float, ...], ...]
    facts: Mapping[str, Any]  # model, task, versions

    def part(self, prompts: int, siblings: int) -> NaturalBatch:
        """The first of each."""
        assert prompts <= len(self.prompts)
        assert siblings <= len(self.responses[0])
        return replace(
            self,
            prompts=self.prompts[:prompts],
            responses=tuple(r[:siblings] for r in self.responses[:prompts]),
            logp=tuple(x[:siblings] for x in self.logp[:prompts]),
            rewards=tuple(x[:siblings] for x in self.rewards[:prompts]),
        )

    def every_row(self) -> NaturalBatch:
        """The same tokens with rewards 0, 1, 0, 1, ...: no advantage is 0, so no row can be left out."""
        return replace(self, rewards=tuple(tuple(float(g % 2) for g in range(len(r))) for r in self.rewards))

    @property
    def informative(self) -> tuple[bool, ...]:
        """Per prompt, whether its siblings' rewards differ."""
        return tuple(len(set(r)) > 1 for r in self.rewards)

    @property
    def tokens(self) -> int:
        """Response tokens."""
        return sum(len(r) for siblings in self.responses for r in siblings)

    def groups(self) -> list[RolloutGroup]:
        """As the collector would hand it over."""
        return [self._group(p) for p in range(len(self.prompts))]

    def _group(self, p: int) -> RolloutGroup:
        prompt = Prompt(id=f"recorded {p}", messages=(), answer=None)
        rows = [
            Trajectory(
                prompt=prompt,
                sample=g,
                prompt_ids=self.prompts[p],
                response_ids=ids,
                loss_mask=(True,) * len(ids),
                logp=self.logp[p][g],
                entropy=None,
                segments=((len(ids), 0),),
                finish_reason="stop",
                text="",
                grade=Grade(score=self.rewards[p][g], correct=self.rewards[p][g] >= 1.0),
            )
            for g, ids in enumerate(self.responses[p])
        ]
        return RolloutGroup(prompt=prompt, trajectories=tuple(rows))


def from_groups(groups: Sequence[RolloutGroup], facts: Mapping[str, Any]) -> NaturalBatch:
    """What a collector returned, without its texts."""
    return NaturalBatch(
        prompts=tuple(g.trajectories[0].prompt_ids for g in groups),
        responses=tuple(tuple(t.response_ids for t in g.trajectories) for g in groups),
        logp=tuple(tuple(t.logp for t in g.trajectories) for g in groups),
        rewards=tuple(tuple(t.grade.score for t in g.trajectories) for g in groups),
        facts=facts,
    )


def save(batch: NaturalBatch, path: Path) -> None:
    """Flat arrays and the lengths by which they are cut again."""
    import torch
    from safetensors.torch import save_file

    rows = [ids for siblings in batch.responses for ids in siblings]
    tensors = {
        "prompt_lengths": torch.tensor([len(p) for p in batch.prompts], dtype=torch.int32),
        "prompt_ids": torch.tensor([i for p in batch.prompts for i in p], dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in rows], dtype=torch.int32),
        "response_ids": torch.tensor([i for ids in rows for i in ids], dtype=torch.int32),
        "logp": torch.tensor([x for siblings in batch.logp for line in siblings for x in line]),
        "rewards": torch.tensor(batch.rewards),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"facts": json.dumps(dict(batch.facts))})


def load(path: Path = RECORDED) -> NaturalBatch:
    """What `save` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    siblings = t["rewards"].shape[1]
    lengths = t["lengths"].tolist()
    return NaturalBatch(
        prompts=tuple(_cut(t["prompt_ids"], t["prompt_lengths"].tolist())),
        responses=_nested(_cut(t["response_ids"], lengths), siblings),
        logp=_nested(_cut(t["logp"], lengths), siblings),
        rewards=tuple(tuple(line) for line in t["rewards"].tolist()),
        facts=facts,
    )


def _cut(flat: Tensor, lengths: list[int]) -> list[tuple[Any, ...]]:
    return [tuple(part.tolist()) for part in flat.split(lengths)]


def _nested(rows: list[tuple[Any, ...]], size: int) -> tuple[tuple[tuple[Any, ...], ...], ...]:
    return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))
