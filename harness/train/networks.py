"""The networks of a run, and per-row quantities computed with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from harness.core.routing import RouterSet
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import RolloutBatch
from harness.train.routes import Follow, Place

MAX_PADDING = 0.08  # of a piece's positions, once it is large enough to keep the machine busy


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


class SharedPrompts(Protocol):
    """Prompts that were run once, for all pieces of the rows that continue them; `prompt` names each row's."""

    def logps(
        self,
        prompt: Int[Tensor, "b"],
        response_ids: Int[Tensor, "b T"],
        mask: Bool[Tensor, "b T"],
        *,
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]: ...

    def values(
        self, prompt: Int[Tensor, "b"], response_ids: Int[Tensor, "b T"], mask: Bool[Tensor, "b T"]
    ) -> Float[Tensor, "n"]: ...

    def backward(self) -> None:
        """Carries the gradient that the pieces left at the prompts into the weights."""


class RunPrompts(Protocol):
    """Runs prompts through a network."""

    def __call__(self, model: nn.Module, prompts: Sequence[tuple[int, ...]], pad_id: int) -> SharedPrompts: ...


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
    run_prompts: RunPrompts | None = None  # None: every row runs its own prompt
    sort_by_length: bool = True
    skip_rows: bool = True  # rows that cannot contribute are left out of the update
    reuse_forward: bool = True  # the first update's forward gives its own old log-probs
    routers: RouterSet | None = None  # of a policy that is a mixture of experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A rollout batch as model input: prompt and response joined, right-padded (causal, so no mask is needed)."""

    input_ids: Int[Tensor, "B L"]
    select: Bool[Tensor, "B L"]  # True where the next token is a trained response token
    response_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    lengths: tuple[int, ...]  # prompt + response
    widths: tuple[int, ...]  # response
    prompts: tuple[tuple[int, ...], ...]  # the different ones
    prompt: tuple[int, ...]  # each row's index among them


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
    prompts = {p: i for i, p in enumerate(dict.fromkeys(batch.prompt_ids))}
    return Rows(
        input_ids=torch.tensor(ids, device=device),
        select=select,
        response_ids=batch.response_ids,
        mask=batch.mask,
        lengths=lengths,
        widths=tuple(len(r) for r in responses),
        prompts=tuple(prompts),
        prompt=tuple(prompts[p] for p in batch.prompt_ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some rows, cut to their own longest."""

    rows: Int[Tensor, "b"]
    input_ids: Int[Tensor, "b L"]
    select: Bool[Tensor, "b L"]
    response_ids: Int[Tensor, "b T"]
    mask: Bool[Tensor, "b T"]
    prompt: Int[Tensor, "b"]  # index among the block's prompts
    starts: Int[Tensor, "b"]  # tokens of each row's prompt

    def spread(self, flat: Float[Tensor, "n"]) -> Float[Tensor, "b T"]:
        """Puts flat token values back into `[b, T]`, 0 elsewhere."""
        empty = torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device)
        return empty.masked_scatter(self.mask, flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Micro-batches whose prompts are run together, once; no `prompts` where each row runs its own."""

    micros: tuple[MicroBatch, ...]
    prompts: tuple[tuple[int, ...], ...] = ()
    owners: tuple[int, ...] = ()  # a row of each prompt


def blocks(rows: Rows, wanted: Sequence[int], nets: Networks) -> Iterator[Block]:
    """The wanted rows in micro-batches of at most `micro_batch_tokens` padded tokens; prompts of a block likewise.

    Sharing needs siblings: where every wanted row has a prompt of its own, each runs it itself.
    """
    used = list(dict.fromkeys(rows.prompt[i] for i in wanted))
    if nets.run_prompts is None or len(used) == len(wanted):
        micros = tuple(micro_batches(rows, wanted, nets.micro_batch_tokens, sort=nets.sort_by_length))
        if micros:
            yield Block(micros=micros)
        return
    for together in _packed(used, [len(rows.prompts[p]) for p in used], nets.micro_batch_tokens):
        place = {prompt: i for i, prompt in enumerate(together)}
        mine = [i for i in wanted if rows.prompt[i] in place]
        micros = tuple(micro_batches(rows, mine, nets.micro_batch_tokens, sort=nets.sort_by_length, place=place))
        owners = tuple(rows.prompt.index(p) for p in together)
        yield Block(micros=micros, prompts=tuple(rows.prompts[p] for p in together), owners=owners)


def micro_batches(
    rows: Rows,
    wanted: Sequence[int],
    max_tokens: int,
    *,
    sort: bool = True,
    place: Mapping[int, int] | None = None,
) -> Iterator[MicroBatch]:
    """The wanted rows, sorted by length, at most `max_tokens` padded tokens at a time.

    `place` is where a block keeps each prompt: then only responses are padded, and their lengths are what sorts.
    """
    order = rows.lengths if place is None else rows.widths
    if sort:
        wanted = sorted(wanted, key=lambda i: order[i])
    for part in _packed(wanted, [rows.lengths[i] for i in wanted], max_tokens):
        for piece in [part] if place is None else _trimmed(part, [rows.widths[i] for i in part], max_tokens // 8):
            yield _slice(rows, piece, place)


def _packed(items: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Consecutive items while their number times the longest stays within the budget; at least one."""
    part: list[int] = []
    longest = 0
    for item, length in zip(items, lengths, strict=True):
        longest = max(longest, length)
        if part and (len(part) + 1) * longest > max_tokens:
            yield part
            part, longest = [], length
        part.append(item)
    if part:
        yield part


def _trimmed(items: Sequence[int], widths: Sequence[int], enough: int) -> Iterator[list[int]]:
    """Consecutive items; a piece with `enough` tokens ends where one more would push its padding beyond the limit."""
    part: list[int] = []
    real = longest = 0
    for item, width in zip(items, widths, strict=True):
        padded = (len(part) + 1) * max(longest, width)
        if real >= enough and padded - real - width > MAX_PADDING * padded:
            yield part
            part, real, longest = [], 0, 0
        part.append(item)
        real, longest = real + width, max(longest, width)
    if part:
        yield part


def _slice(rows: Rows, part: list[int], place: Mapping[int, int] | None) -> MicroBatch:
    device = rows.input_ids.device
    index = torch.tensor(part, device=device)
    length = max(rows.lengths[i] for i in part)
    width = max(rows.widths[i] for i in part)
    return MicroBatch(
        rows=index,
        input_ids=rows.input_ids[index, :length],
        select=rows.select[index, :length],
        response_ids=rows.response_ids[index, :width],
        mask=rows.mask[index, :width],
        prompt=torch.tensor([0 if place is None else place[rows.prompt[i]] for i in part], device=device),
        starts=torch.tensor([len(rows.prompts[rows.prompt[i]]) for i in part], device=device),
    )


def run_prompts(nets: Networks, model: nn.Module, block: Block, follow: Follow | None = None) -> SharedPrompts | None:
    """The block's prompts under `model`; None where each row runs its own."""
    if nets.run_prompts is None or not block.prompts:
        return None
    device = block.micros[0].mask.device
    owners = torch.tensor(block.owners, device=device)
    width = max(len(p) for p in block.prompts)
    with _routed(nets, follow, Place(rows=owners, first=torch.zeros_like(owners), width=width, prompts=True)):
        return nets.run_prompts(model, block.prompts, nets.pad_id)


def policy_logps(
    nets: Networks,
    model: nn.Module,
    micro: MicroBatch,
    prompts: SharedPrompts | None = None,
    *,
    with_entropy: bool = False,
    follow: Follow | None = None,
) -> tuple[Float[Tensor, "b T"], Float[Tensor, "b T"] | None]:
    """Log-probs of a micro-batch under `model`, and entropies on request; `follow`: its routes through experts."""
    if prompts is not None:
        place = Place(rows=micro.rows, first=micro.starts, width=micro.response_ids.shape[1] - 1)
        with _routed(nets, follow, place):
            logp, entropy = prompts.logps(
                micro.prompt, micro.response_ids, micro.mask, temperature=nets.temperature, with_entropy=with_entropy
            )
    else:
        place = Place(rows=micro.rows, first=torch.zeros_like(micro.starts), width=micro.input_ids.shape[1])
        with _routed(nets, follow, place):
            logp, entropy = nets.token_logps(
                model, micro.input_ids, micro.select, temperature=nets.temperature, with_entropy=with_entropy
            )
    return micro.spread(logp), None if entropy is None else micro.spread(entropy)


def _routed(nets: Networks, follow: Follow | None, place: Place) -> AbstractContextManager[None]:
    if follow is None or nets.routers is None:
        return nullcontext()
    return nets.routers.under(follow(place))


def critic_values(critic: nn.Module, micro: MicroBatch, prompts: SharedPrompts | None = None) -> Float[Tensor, "b T"]:
    """V of the state before each response token."""
    if prompts is not None:
        return micro.spread(prompts.values(micro.prompt, micro.response_ids, micro.mask))
    values = critic(micro.input_ids).float()
    return micro.spread(values[micro.select])


@torch.no_grad()
def no_grad_logps(
    nets: Networks, model: nn.Module, rows: Rows, wanted: Sequence[int], follow: Follow | None = None
) -> Float[Tensor, "B T"]:
    """Log-probs of the wanted rows `[B, T]`; 0 in the others."""
    result = torch.zeros(rows.mask.shape, device=rows.mask.device)
    for block in blocks(rows, wanted, nets):
        prompts = run_prompts(nets, model, block, follow)
        for micro in block.micros:
            logp, _ = policy_logps(nets, model, micro, prompts, follow=follow)
            result[micro.rows, : logp.shape[1]] = logp
    return result


@torch.no_grad()
def no_grad_values(nets: Networks, critic: nn.Module, rows: Rows) -> Float[Tensor, "B T"]:
    """Values of all rows `[B, T]`."""
    result = torch.zeros(rows.mask.shape, device=rows.mask.device)
    for block in blocks(rows, range(len(rows.lengths)), nets):
        prompts = run_prompts(nets, critic, block)
        for micro in block.micros:
            values = critic_values(critic, micro, prompts)
            result[micro.rows, : values.shape[1]] = values
    return result
