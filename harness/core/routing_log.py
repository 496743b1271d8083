"""routing.jsonl: by layer, what steps.jsonl has as one number. Only runs of a mixture of experts have it."""

from __future__ import annotations

from pathlib import Path

from harness.core.results import Record, read_lines

ROUTING = "routing.jsonl"


class Gap(Record):
    """A token on whose log-prob engine and trainer disagree although both compute in float32."""

    prompt_id: str
    sample: int
    token: int  # its number in the response
    gap: float  # old_logp - behaviour_logp, nats
    margin: float | None  # smallest lead of a chosen expert's logit over the next, over all layers and tokens read
    flipped: int | None  # (token, layer, slot) choices read so far in which the two differ; None: the engine tells none


class RoutingRecord(Record):
    """One step of one run; every list has one entry per layer with a router."""

    step: int
    mode: str  # off, r2 or r3
    expert_change: tuple[float, ...] | None  # of the fixed probe tokens, by one optimizer step
    since_start: tuple[float, ...] | None  # the same tokens before this step, since the initial policy
    selections: tuple[tuple[float, ...], ...]  # by optimizer step under newer weights: shares of new choices
    tokens: tuple[tuple[float, ...], ...]  # the same: shares of tokens with any new choice
    anywhere: tuple[float, ...]  # the same, in any layer: one number by optimizer step
    sampler: tuple[float, ...] | None  # shares of choices in which trainer and sampler differ
    max_vio: tuple[float, ...]
    dead_experts: tuple[float, ...]
    route_entropy: tuple[float, ...]
    replay_bytes: int  # of the routes that were kept for replay
    bytes_per_token: int  # layers x k x size of an index
    gap_tokens: int | None  # tokens beyond the limit; None: not in full precision
    gaps: tuple[Gap, ...] = ()  # the largest ones; steps.jsonl has their number


def read_routing(folder: Path) -> list[RoutingRecord]:
    """The records of a run folder; none for a dense model."""
    return [RoutingRecord.model_validate(row) for row in read_lines(folder / ROUTING)]
