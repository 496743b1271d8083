"""The networks of a run, and per-row quantities computed with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import RolloutBatch


class TokenLogps(Protocol):
    """Log-probs (and entropies) of the tokens that follow the selected positions, flat in row-major order."""

    def __call__(
        self,
        policy: nn.Module,
        input_ids: Int[Tensor, "b L"],
        select: Bool[Tensor, "b L"],
        *,
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Provisioned by need: no critic or reference exists unless a part asks for one."""

    policy: nn.Module
    token_logps: TokenLogps
    temperature: float
    micro_batch_tokens: int  # padded tokens of one forward/backward
    pad_id: int
    critic: nn.Module | None = None
    reference: nn.Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A rollout batch as model input: prompt and response joined, right-padded (causal, so no mask is needed)."""

    input_ids: Int[Tensor, "B L"]
    select: Bool[Tensor, "B L"]  # True where the next token is a trained response token
    mask: Bool[Tensor, "B T"]
    lengths: tuple[int, ...]  # prompt + response
    widths: tuple[int, ...]  # response


def as_rows(batch: RolloutBatch, pad_id: int) -> Rows:
    """Joins prompts and responses once; micro-batches are slices of the result."""
    responses = [t.response_ids for t in batch.trajectories]
    lengths = tuple(len(p) + len(r) for p, r in zip(batch.prompt_ids, responses, strict=True))
    width = max(lengths, default=1)
    ids = [[*p, *r, *(pad_id,) * (width - n)] for p, r, n in zip(batch.prompt_ids, responses, lengths, strict=True)]
    device = batch.mask.device
    select = torch.zeros(len(ids), width, dtype=torch.bool, device=device)
    starts = torch.tensor([len(p) - 1 for p in batch.prompt_ids], device=device)
    row, token = batch.mask.nonzero(as_tuple=True)
    select[row, starts[row] + token] = True
    return Rows(
        input_ids=torch.tensor(ids, device=device),
        select=select,
        mask=batch.mask,
        lengths=lengths,
        widths=tuple(len(r) for r in responses),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some rows, cut to their own longest."""

    rows: Int[Tensor, "b"]
    input_ids: Int[Tensor, "b L"]
    select: Bool[Tensor, "b L"]
    mask: Bool[Tensor, "b T"]

    def spread(self, flat: Float[Tensor, "n"]) -> Float[Tensor, "b T"]:
        """Puts flat token values back into `[b, T]`, 0 elsewhere."""
        empty = torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device)
        return empty.masked_scatter(self.mask, flat)


def micro_batches(rows: Rows, wanted: Sequence[int], max_tokens: int) -> Iterator[MicroBatch]:
    """The wanted rows, sorted by length, at most `max_tokens` padded tokens at a time."""
    part: list[int] = []
    for i in sorted(wanted, key=lambda i: rows.lengths[i]):
        if part and (len(part) + 1) * rows.lengths[i] > max_tokens:
            yield _slice(rows, part)
            part = []
        part.append(i)
    if part:
        yield _slice(rows, part)


def _slice(rows: Rows, part: list[int]) -> MicroBatch:
    index = torch.tensor(part, device=rows.input_ids.device)
    length = max(rows.lengths[i] for i in part)
    width = max(rows.widths[i] for i in part)
    return MicroBatch(
        rows=index,
        input_ids=rows.input_ids[index, :length],
        select=rows.select[index, :length],
        mask=rows.mask[index, :width],
    )


def policy_logps(
    nets: Networks, model: nn.Module, micro: MicroBatch, *, with_entropy: bool = False
) -> tuple[Float[Tensor, "b T"], Float[Tensor, "b T"] | None]:
    """Log-probs of a micro-batch under `model`, and entropies on request."""
    logp, entropy = nets.token_logps(
        model, micro.input_ids, micro.select, temperature=nets.temperature, with_entropy=with_entropy
    )
    return micro.spread(logp), None if entropy is None else micro.spread(entropy)


def critic_values(critic: nn.Module, micro: MicroBatch) -> Float[Tensor, "b T"]:
    """V of the state before each response token."""
    values = critic(micro.input_ids).float()
    return micro.spread(values[micro.select])


@torch.no_grad()
def no_grad_logps(nets: Networks, model: nn.Module, rows: Rows, wanted: Sequence[int]) -> Float[Tensor, "B T"]:
    """Log-probs of the wanted rows `[B, T]`; 0 in the others."""
    result = torch.zeros(rows.mask.shape, device=rows.mask.device)
    for micro in micro_batches(rows, wanted, nets.micro_batch_tokens):
        logp, _ = policy_logps(nets, model, micro)
        result[micro.rows, : logp.shape[1]] = logp
    return result


@torch.no_grad()
def no_grad_values(nets: Networks, critic: nn.Module, rows: Rows) -> Float[Tensor, "B T"]:
    """Values of all rows `[B, T]`."""
    result = torch.zeros(rows.mask.shape, device=rows.mask.device)
    for micro in micro_batches(rows, range(len(rows.lengths)), nets.micro_batch_tokens):
        values = critic_values(critic, micro)
        result[micro.rows, : values.shape[1]] = values
    return result
