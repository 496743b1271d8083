"""Ragged batches for monitor tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.core.types import Grade, Prompt, RolloutBatch, RolloutGroup, Trajectory, UpdateTrace


def trajectory(
    prompt: str,
    sample: int,
    ids: Sequence[int],
    *,
    score: float = 0.0,
    logp: Sequence[float] | None = None,
    entropy: Sequence[float] | None = None,
    mask: Sequence[bool] | None = None,
    truncated: bool = False,
    extracted: str | None = "1",
) -> Trajectory:
    """One graded response."""
    return Trajectory(
        prompt=Prompt(id=prompt, messages=(), answer=None),
        sample=sample,
        prompt_ids=(1, 2),
        response_ids=tuple(ids),
        loss_mask=tuple(mask) if mask is not None else (True,) * len(ids),
        logp=tuple(logp) if logp is not None else (-0.5,) * len(ids),
        entropy=tuple(entropy) if entropy is not None else (0.4,) * len(ids),
        segments=((len(ids), 0),),
        finish_reason="length" if truncated else "stop",
        text="",
        grade=Grade(score=score, correct=score >= 1.0, extracted=extracted),
    )


def group(*rows: Trajectory) -> RolloutGroup:
    """Siblings."""
    return RolloutGroup(prompt=rows[0].prompt, trajectories=rows)


def batch(groups: Sequence[RolloutGroup], width: int | None = None, garbage: float = 0.0) -> RolloutBatch:
    """Groups as tensors; padding holds `garbage`."""
    rows = [t for g in groups for t in g.trajectories]
    width = width or max((len(t.response_ids) for t in rows), default=0)

    def grid(values: Sequence[Sequence[Any]], fill: Any, dtype: torch.dtype) -> torch.Tensor:
        padded = [[*v, *[fill] * (width - len(v))] for v in values]
        return torch.tensor(padded, dtype=dtype).reshape(len(rows), width)

    return RolloutBatch(
        prompt_ids=tuple(t.prompt_ids for t in rows),
        response_ids=grid([t.response_ids for t in rows], 7, torch.int64),
        mask=grid([t.loss_mask for t in rows], False, torch.bool),
        behaviour_logp=grid([t.logp for t in rows], garbage, torch.float32),
        entropy=grid([t.entropy or () for t in rows], garbage, torch.float32),
        group=torch.tensor([n for n, g in enumerate(groups) for _ in g.trajectories], dtype=torch.int64),
        reward=torch.tensor([t.grade.score for t in rows]),
        correct=torch.tensor([t.grade.correct for t in rows], dtype=torch.bool),
        truncated=torch.tensor([t.finish_reason == "length" for t in rows], dtype=torch.bool),
        components={},
        credit=None,
        trajectories=tuple(rows),
    )


def trace(logp: Any, old: Any, mask: Any = None, **changes: Any) -> UpdateTrace:
    """One optimizer step."""
    new, before = torch.as_tensor(logp, dtype=torch.float32), torch.as_tensor(old, dtype=torch.float32)
    use = torch.ones_like(new, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    nothing = torch.zeros_like(use)
    fields: dict[str, Any] = {
        "logp": new, "old_logp": before, "behaviour_logp": before.clone(), "mask": use, "clipped_low": nothing,
        "clipped_high": nothing, "outside": nothing, "loss": 0.5, "penalties": {}, "grad_norm": 1.0,
        "grad_clipped": False, "critic": None, "on_policy": False, "nonfinite": 0, "has_clip": True,
    }  # fmt: skip
    return UpdateTrace(**(fields | changes))
