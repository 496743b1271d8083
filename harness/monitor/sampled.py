"""What was generated in a step before admission: counts, group statistics, and the refused groups themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import RolloutBatch, RolloutGroup

_NO_SPREAD = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCounts:
    """All that was sampled in one step, whether admitted or not."""

    tokens: int  # response tokens the policy produced
    rows: int
    groups: int
    reward_mean: float | None  # task reward over all rows
    reward_std: float | None  # ddof 0
    group_std: float | None  # mean over groups of two and more of SD_g, ddof 1
    zero_var: float | None  # share of these groups without spread
    zero_var_all0: float | None  # ... with no correct response
    zero_var_all1: float | None  # ... with only correct responses
    nonfinite_reward: int = 0  # rows left out of the statistics above
    rounds: int = 1  # generation batches
    exhausted: bool = False  # the refill cap was hit
    discarded: tuple[RolloutGroup, ...] = ()  # groups outside the batch; entropy, length and text metrics include them
    carried: int | None = None  # groups of an earlier step that begin the batch; None where none can be


def count_sampled(
    admitted: Sequence[RolloutGroup],
    discarded: Sequence[RolloutGroup] = (),
    *,
    rounds: int = 1,
    exhausted: bool = False,
    carried: int | None = None,
) -> SampledCounts:
    """Counts of one step's generation; zero variance means max R - min R < 1e-8 in a group.

    `admitted` and `discarded` are the groups sampled in this step, in the batch and outside it; the `carried` groups
    that begin the batch were counted when they were sampled.
    """
    groups = (*admitted, *discarded)
    rows = [t for g in groups for t in g.trajectories]
    finite = [t.grade.score for t in rows if math.isfinite(t.grade.score)]
    scores = [[t.grade.score for t in g.trajectories if math.isfinite(t.grade.score)] for g in groups]
    wide = [(g, s) for g, s in zip(groups, scores, strict=True) if len(s) > 1]
    dead = [g for g, s in wide if max(s) - min(s) < _NO_SPREAD]
    none = sum(not any(t.grade.correct for t in g.trajectories) for g in dead)
    every = sum(all(t.grade.correct for t in g.trajectories) for g in dead)
    share = 1 / len(wide) if wide else None
    return SampledCounts(
        tokens=sum(t.num_tokens for t in rows),
        rows=len(rows),
        groups=len(groups),
        reward_mean=math.fsum(finite) / len(finite) if finite else None,
        reward_std=_deviation(finite, 0),
        group_std=math.fsum(_deviation(s, 1) or 0.0 for _, s in wide) * share if share else None,
        zero_var=len(dead) * share if share else None,
        zero_var_all0=none * share if share else None,
        zero_var_all1=every * share if share else None,
        nonfinite_reward=len(rows) - len(finite),
        rounds=rounds,
        exhausted=exhausted,
        discarded=tuple(discarded),
        carried=carried,
    )


def _deviation(x: Sequence[float], ddof: int) -> float | None:
    if len(x) <= ddof:
        return None
    mean = statistics.fmean(x)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - ddof))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """All sampled rows as tensors: the batch, then the refused groups."""

    ids: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]
    logp: Float[Tensor, "R T"]
    entropy: Float[Tensor, "R T"] | None
    group: Int[Tensor, "R"]
    correct: Bool[Tensor, "R"]
    truncated: Bool[Tensor, "R"]
    unreadable: int | None  # rows from which no answer was read; None where that is unknown
    ungraded: int | None  # rows whose grading failed; None where that is unknown


def all_rows(batch: RolloutBatch, sampled: SampledCounts) -> Rows:
    """The rows sampled in this step, those of the batch and those outside it, on one padded grid."""
    known = len(batch.trajectories) == batch.num_rows
    late = [t for g in sampled.discarded for t in g.trajectories]
    carried = sampled.carried or 0
    new = batch.group >= carried if carried else slice(None)
    mine = [t for t, g in zip(batch.trajectories, batch.group.tolist(), strict=True) if g >= carried] if known else []
    rows = Rows(
        ids=batch.response_ids[new],
        mask=batch.mask[new],
        logp=batch.behaviour_logp[new],
        entropy=None if batch.entropy is None else batch.entropy[new],
        group=batch.group[new] - carried,
        correct=batch.correct[new],
        truncated=batch.truncated[new],
        unreadable=sum(t.grade.extracted is None for t in (*mine, *late)) if known else None,
        ungraded=sum(t.grade.failed for t in (*mine, *late)) if known else None,
    )
    return _extend(rows, sampled.discarded, batch.num_groups - carried) if late else rows


def _extend(rows: Rows, discarded: Sequence[RolloutGroup], num_groups: int) -> Rows:
    late = [t for g in discarded for t in g.trajectories]
    group = [num_groups + n for n, g in enumerate(discarded) for _ in g.trajectories]
    width = max(rows.mask.shape[1], *(len(t.response_ids) for t in late))

    def joined(old: Tensor, new: Sequence[Sequence[float]]) -> Tensor:
        padded = [[*row, *[0] * (width - len(row))] for row in new]
        old = torch.nn.functional.pad(old, (0, width - old.shape[1]))
        return torch.cat([old, torch.tensor(padded, dtype=old.dtype, device=old.device)])

    def joined_row(old: Tensor, new: Sequence[float]) -> Tensor:
        return torch.cat([old, torch.tensor(new, dtype=old.dtype, device=old.device)])

    entropy = [t.entropy for t in late if t.entropy is not None]
    has_entropy = rows.entropy is not None and len(entropy) == len(late)
    return Rows(
        ids=joined(rows.ids, [t.response_ids for t in late]),
        mask=joined(rows.mask, [t.loss_mask for t in late]),
        logp=joined(rows.logp, [t.logp for t in late]),
        entropy=joined(rows.entropy, entropy) if has_entropy and rows.entropy is not None else None,
        group=joined_row(rows.group, group),
        correct=joined_row(rows.correct, [t.grade.correct for t in late]),
        truncated=joined_row(rows.truncated, [t.finish_reason == "length" for t in late]),
        unreadable=rows.unreadable,
        ungraded=rows.ungraded,
    )
