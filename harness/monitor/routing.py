"""Metrics of a mixture of experts: who is chosen, how evenly, and how often the choice differs.

A choice is a (token, layer, slot). Two routes of a token differ in k - |a & b| choices per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.core.metrics import UPDATE_SUFFIXES
from harness.core.routes import BatchRoutes, Changes, ProbeSeen
from harness.core.routing import UNKNOWN, new_experts
from harness.core.routing_log import Gap, RoutingRecord
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import RolloutBatch
from harness.monitor.numbers import Row

GAP = 1e-3  # nats; engine and trainer of one model differ by 1e-6 in float32
LISTED = 20  # gaps of a step that are listed
DEAD = 0.01  # of an expert's fair share


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """Evenness of each layer's load."""

    max_vio: Float[Tensor, "layers"]  # (max load - balanced) / balanced
    cv: Float[Tensor, "layers"]  # SD / mean
    dead: Float[Tensor, "layers"]  # share of experts with less than 1 % of their fair share
    entropy: Float[Tensor, "layers"]  # H / log E


def loads(experts: Int[Tensor, "n layers k"], num_experts: int) -> Loads:
    """Of the choices of n tokens."""
    layers = experts.shape[1]
    counts = torch.stack([
        torch.bincount(experts[:, layer].flatten().long(), minlength=num_experts).double() for layer in range(layers)
    ])  # fmt: skip
    share = counts / counts.sum(-1, keepdim=True)
    fair = 1.0 / num_experts
    return Loads(
        max_vio=share.max(-1).values / fair - 1,
        cv=share.std(-1, correction=0) / fair,
        dead=(share < DEAD * fair).double().mean(-1),
        entropy=-torch.special.xlogy(share, share).sum(-1) / math.log(num_experts),
    )


@torch.no_grad()
def routing_metrics(
    routing: BatchRoutes,
    batch: RolloutBatch,
    old_logp: Float[Tensor, "B T"] | None,
    probe: ProbeSeen | None,
    *,
    step: int,
    full_precision: bool,
) -> tuple[Row, RoutingRecord | None]:
    """The row's numbers, and the record by layer; neither where no forward recorded a route.

    `full_precision`: engine and trainer compute in float32, so a gap between their log-probs is worth listing.
    """
    known = routing.response & (routing.old.experts[..., 0, 0] != UNKNOWN)
    if not bool(known.any()):
        return {}, None
    chosen = routing.old.experts[known]
    balance = loads(chosen, routing.num_experts)
    sampler = None
    row: Row = {
        "moe/max_vio": float(balance.max_vio.max()),
        "moe/load_cv": float(balance.cv.max()),
        "moe/dead_experts": float(balance.dead.max()),
        "moe/route_entropy": float(balance.entropy.min()),
        "moe/replay_bytes": replay_bytes(routing),
        **_updates(routing.between, routing.top_k),
    }
    if routing.sampled is not None and bool((known & batch.fresh[:, None]).any()):
        ours = known & batch.fresh[:, None]  # rows carried over come from older weights
        differing = new_experts(routing.old.experts[ours], routing.sampled.experts[ours])
        sampler = differing.float().mean(0) / routing.top_k
        row["moe/sampler_selections"] = float(sampler.mean())
        row["moe/sampler_tokens"] = float((differing > 0).any(-1).float().mean())
    if probe is not None:
        row["moe/expert_change"] = float(probe.step.mean())
        row["moe/expert_change_total"] = float(probe.since_start.mean())
    gap_tokens, gaps = None, list[Gap]()
    if full_precision and old_logp is not None:
        gap_tokens, gaps = _gaps(routing, batch, old_logp, known)
        row["moe/gap_tokens"] = gap_tokens
    compared = [c for c in routing.between if c.compared]
    record = RoutingRecord(
        step=step,
        mode=routing.mode,
        expert_change=None if probe is None else _list(probe.step),
        since_start=None if probe is None else _list(probe.since_start),
        selections=tuple(_list(c.slots / (c.compared * routing.top_k)) for c in compared),
        tokens=tuple(_list(c.tokens / c.compared) for c in compared),
        anywhere=tuple(round(c.anywhere / c.compared, 6) for c in compared),
        sampler=None if sampler is None else _list(sampler),
        max_vio=_list(balance.max_vio),
        dead_experts=_list(balance.dead),
        route_entropy=_list(balance.entropy),
        replay_bytes=replay_bytes(routing),
        bytes_per_token=routing.old.bytes_per_token,
        gap_tokens=gap_tokens,
        gaps=tuple(gaps),
    )
    return row, record


def replay_bytes(routing: BatchRoutes) -> int:
    """Tokens x layers x k x the size of an index; 0 where nothing is replayed."""
    if routing.mode == "off":
        return 0
    read = int((routing.ends - 1).sum())
    return read * routing.old.bytes_per_token


def _updates(between: Sequence[Changes], k: int) -> Row:
    compared = [c for c in between if c.compared]
    if not compared:
        return {}
    found: Row = {}
    values = {
        "moe/selections_changed": [float(c.slots.mean()) / (c.compared * k) for c in compared],
        "moe/tokens_changed": [c.anywhere / c.compared for c in compared],
    }
    for key, series in values.items():
        three = (series[0], series[-1], max(series))
        found |= {f"{key}/{suffix}": v for suffix, v in zip(UPDATE_SUFFIXES, three, strict=True)}
    return found


def _gaps(
    routing: BatchRoutes, batch: RolloutBatch, old_logp: Float[Tensor, "B T"], known: Bool[Tensor, "B L"]
) -> tuple[int, list[Gap]]:
    """How many tokens of the rows that were recorded lie beyond GAP, and the largest of them."""
    gap = (old_logp - batch.behaviour_logp) * (batch.mask & (known.any(-1) & batch.fresh)[:, None])
    beyond = (gap.abs() > GAP).nonzero()
    worst = sorted(beyond.tolist(), key=lambda at: -abs(float(gap[at[0], at[1]])))[:LISTED]
    return len(beyond), [_gap(routing, batch, row, token, float(gap[row, token])) for row, token in worst]


def _gap(routing: BatchRoutes, batch: RolloutBatch, row: int, token: int, gap: float) -> Gap:
    read = int(routing.starts[row]) + token  # tokens that the log-prob depends on
    margins = routing.old.margins[row, :read]
    finite = margins[margins.isfinite()]
    flipped = None
    if routing.sampled is not None:
        ours = routing.old.experts[row, :read]
        known = ours[:, 0, 0] != UNKNOWN
        flipped = int(new_experts(ours[known], routing.sampled.experts[row, :read][known]).sum())
    found = batch.trajectories[row]
    return Gap(
        prompt_id=found.prompt.id,
        sample=found.sample,
        token=token,
        gap=gap,
        margin=float(finite.min()) if len(finite) else None,
        flipped=flipped,
    )


def _list(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)
