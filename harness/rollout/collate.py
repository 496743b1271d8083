"""Groups -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.core.shapes import Tensor
from harness.core.types import RolloutBatch, RolloutGroup, StepCredit


def collate(groups: Sequence[RolloutGroup], device: torch.device | str = "cpu") -> RolloutBatch:
    """Rows in group order, responses right-padded to the longest; padding is masked out."""
    rows = [t for g in groups for t in g.trajectories]
    width = max((len(t.response_ids) for t in rows), default=0)
    has_entropy = bool(rows) and all(t.entropy is not None for t in rows)
    names = sorted({name for t in rows for name in t.grade.components})

    def padded(values: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
        return torch.tensor(
            [[*line, *(0,) * (width - len(line))] for line in values], dtype=dtype, device=device
        ).reshape(len(rows), width)

    def column(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def credited(lists: Sequence[Sequence[tuple[int, float]]]) -> StepCredit | None:
        found = [(i, end, reward) for i, line in enumerate(lists) for end, reward in line]
        if not found:
            return None
        row, end, reward = zip(*found, strict=True)
        return StepCredit(
            row=column(row, torch.long), end=column(end, torch.long), reward=column(reward, torch.float32)
        )

    return RolloutBatch(
        prompt_ids=tuple(t.prompt_ids for t in rows),
        response_ids=padded([t.response_ids for t in rows], torch.long),
        mask=padded([t.loss_mask for t in rows], torch.bool),
        behaviour_logp=padded([t.logp for t in rows], torch.float32),
        entropy=padded([t.entropy or () for t in rows], torch.float32) if has_entropy else None,
        group=column([i for i, g in enumerate(groups) for _ in g.trajectories], torch.long),
        reward=column([t.grade.score for t in rows], torch.float32),
        correct=column([t.grade.correct for t in rows], torch.bool),
        truncated=column([t.finish_reason == "length" for t in rows], torch.bool),
        components={n: column([t.grade.components.get(n, float("nan")) for t in rows], torch.float32) for n in names},
        credit=credited([t.credit for t in rows]),
        trajectories=tuple(rows),
        policy_version=column([min(v for _, v in t.segments) for t in rows], torch.long)
        if all(t.segments for t in rows)
        else None,
        turns=credited([t.turns for t in rows]),
    )
