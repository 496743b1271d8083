"""Routes of a rollout batch through a mixture of experts: recorded, replayed and compared.

A token's route is the k experts of every layer that it goes to, kept by row and position, so that no micro-batch, no
shared prompt and no mini-batch partition changes what is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from harness.core.algorithm import Replay
from harness.core.errors import UsageError
from harness.core.routes import BatchRoutes, Book, Changes, empty_book
from harness.core.routing import UNKNOWN, Chosen, Pass, RouterSet, new_experts
from harness.core.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the tokens [b, T] of one forward stand in the batch."""

    rows: Int[Tensor, "b"]
    first: Int[Tensor, "b"]  # position of column 0; prompt and response are counted through
    width: int
    prompts: bool = False  # prompts that were run once for all their rows; `rows` names one of each


Follow = Callable[[Place], Pass]
"""What a forward over some place does with routing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The tokens of a place, flat: where each stands, and which of them matter."""

    row: Int[Tensor, "N"]
    position: Int[Tensor, "N"]  # clamped to the batch; `real` is False where that moved it
    real: Bool[Tensor, "N"]  # tokens of a row (of its prompt), not padding
    read: Bool[Tensor, "N"]  # real ones that a log-prob of the row depends on: all but its last
    counts: Bool[Tensor, "N"]  # response tokens that are read


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One forward over a place. Natural choices are noted in `into` and compared with `against`."""

    tokens: _Tokens
    copies: Sequence[tuple[int, int]]  # (row that a shared prompt was run for, another row that has it)
    replayed: Book | None  # None: choices are free
    own_gates: bool
    into: Book | None = None
    against: Book | None = None
    changes: Changes | None = None
    changed: Tensor | None = None  # [N] in any layer so far

    def route(self, chosen: Chosen) -> Int[Tensor, "N k"]:
        if self.into is not None:
            self._note(self.into, chosen)
        if self.changes is not None and self.against is not None:
            self._compare(chosen, self.against, self.changes)
        if self.replayed is None:
            return chosen.experts
        known = self._at(self.replayed, chosen.layer)
        return torch.where(known == UNKNOWN, chosen.experts, known.to(chosen.experts.dtype))

    def again(self) -> Pass | None:
        source = self.into if self.replayed is None else self.replayed
        if not self.own_gates:
            return None
        return _Pass(tokens=self.tokens, copies=(), replayed=source, own_gates=True)

    def _at(self, book: Book, layer: int) -> Int[Tensor, "N k"]:
        return book.experts[self.tokens.row, self.tokens.position, layer]

    def _note(self, book: Book, chosen: Chosen) -> None:
        real, layer = self.tokens.real, chosen.layer
        row, position = self.tokens.row[real], self.tokens.position[real]
        book.experts[row, position, layer] = chosen.experts[real].to(book.experts.dtype)
        book.margins[row, position, layer] = _margins(chosen.logits, chosen.experts.shape[1])[real]
        if layer == len(book.margins[0, 0]) - 1:
            for origin, other in self.copies:
                mine = position[row == origin]
                book.experts[other, mine] = book.experts[origin, mine]
                book.margins[other, mine] = book.margins[origin, mine]

    def _compare(self, chosen: Chosen, against: Book, changes: Changes) -> None:
        before = self._at(against, chosen.layer)
        use = self.tokens.counts & (before[:, 0] != UNKNOWN)
        gone = new_experts(chosen.experts, before) * use
        changes.slots[chosen.layer] += gone.sum().cpu()
        changes.tokens[chosen.layer] += (gone > 0).sum().cpu()
        self.changed = gone > 0 if self.changed is None else self.changed | (gone > 0)
        if chosen.layer == len(changes.slots) - 1:
            changes.anywhere += int(self.changed.sum())
            changes.compared += int(use.sum())


def _margins(logits: Float[Tensor, "N E"], k: int) -> Float[Tensor, "N"]:
    """How far the k-th largest logit lies above the next: rounding flips a choice only where this is small."""
    if k == logits.shape[1]:
        return torch.full(logits.shape[:1], torch.inf, device=logits.device)
    top = logits.detach().float().topk(k + 1, dim=-1).values
    return top[:, k - 1] - top[:, k]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing(BatchRoutes):
    """The routes of one rollout batch, and what its forwards do with them."""

    routers: RouterSet
    siblings: tuple[tuple[int, ...], ...]  # the other rows with the same prompt, by row

    @property
    def recorded(self) -> bool:
        """Whether a pass under the old weights has been made."""
        return bool((self.old.experts != UNKNOWN).any())

    def recording(self) -> Follow:
        """A pass under the old weights, which notes its natural choices."""
        return self._follow(replayed=self.sampled if self.mode == "r3" else None, into=self.old)

    def updating(self) -> Follow:
        """The forwards of one optimizer step under newer weights."""
        self.between.append(Changes.none(self.routers.num_layers))
        replayed = {"off": None, "r2": self.old, "r3": self.sampled}[self.mode]
        return self._follow(replayed=replayed, against=self.old, changes=self.between[-1])

    def _follow(
        self,
        *,
        replayed: Book | None,
        into: Book | None = None,
        against: Book | None = None,
        changes: Changes | None = None,
    ) -> Follow:
        def follow(place: Place) -> Pass:
            tokens = self._tokens(place)
            if replayed is not None:
                self._require(replayed, tokens)
            rows = place.rows.tolist() if place.prompts else ()
            return _Pass(
                tokens=tokens,
                copies=[(row, other) for row in rows for other in self.siblings[row]],
                replayed=replayed,
                own_gates=self.mode != "off",
                into=into,
                against=against,
                changes=changes,
            )

        return follow

    def _tokens(self, place: Place) -> _Tokens:
        at = place.first[:, None] + torch.arange(place.width, device=place.first.device)
        row = place.rows[:, None].expand_as(at)
        end = (self.starts if place.prompts else self.ends)[row]
        real = at < end
        at = at.clamp(max=self.response.shape[1] - 1)
        return _Tokens(
            row=row.flatten(),
            position=at.flatten(),
            real=real.flatten(),
            read=(real & (at < self.ends[row] - 1)).flatten(),
            counts=(self.response[row, at] & real & (not place.prompts)).flatten(),
        )

    def _require(self, book: Book, tokens: _Tokens) -> None:
        """A token without a route would take a free one, and the replay would be of another policy."""
        known = (book.experts[tokens.row, tokens.position] != UNKNOWN).all(-1).all(-1)
        missing = (tokens.read & ~known).nonzero()
        if len(missing):
            first = int(missing[0])
            raise UsageError(
                f"routing_replay={self.mode}: {len(missing)} tokens without a recorded route",
                f"the first is at position {int(tokens.position[first])} of row {int(tokens.row[first])}; where some "
                "tokens are routed freely, the replay is of another policy",
                "a sampler that returns the route of every token it reads, or routing_replay=r2 or off",
            )


def routing_of(
    routers: RouterSet,
    mode: Replay,
    *,
    prompt_ids: Sequence[tuple[int, ...]],
    mask: Bool[Tensor, "B T"],
    lengths: Sequence[int],
    width: int,
    sampled: Sequence[Tensor | None],
) -> Routing:
    """Of a batch of rows: prompts, loss mask, tokens of prompt and response, widest row, the sampler's routes."""
    device = mask.device
    starts = torch.tensor([len(p) for p in prompt_ids], device=device)
    ends = torch.tensor(lengths, device=device)
    response = torch.zeros(len(lengths), width, dtype=torch.bool, device=device)
    row, token = mask.nonzero(as_tuple=True)
    at = starts[row] + token
    read = at < ends[row] - 1
    response[row[read], at[read]] = True
    same: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompt_ids):
        same.setdefault(prompt, []).append(i)
    shape = (len(lengths), width)
    return Routing(
        routers=routers,
        num_experts=routers.num_experts,
        top_k=routers.top_k,
        mode=mode,
        starts=starts,
        ends=ends,
        response=response,
        siblings=tuple(tuple(j for j in same[p] if j != i) for i, p in enumerate(prompt_ids)),
        sampled=_sampled_book(sampled, lengths, shape, routers, mode, device),
        old=empty_book(shape, routers, device),
    )


def _sampled_book(
    routes: Sequence[Tensor | None],
    lengths: Sequence[int],
    shape: tuple[int, int],
    routers: RouterSet,
    mode: Replay,
    device: torch.device,
) -> Book | None:
    """The sampler's routes by row and position; an error where a replay needs them and they are missing or shifted."""
    if any(r is None for r in routes):
        if mode != "r3":
            return None
        raise UsageError(
            f"routing_replay=r3: {sum(r is None for r in routes)} of {len(routes)} responses came without routes",
            "the sampler did not return which experts its tokens went to",
            "--sampler transformers, vllm on a GPU, or routing_replay=r2 or off",
        )
    book = empty_book(shape, routers, device)
    for i, (found, length) in enumerate(zip(routes, lengths, strict=True)):
        assert found is not None
        expected = (length - 1, routers.num_layers, routers.top_k)
        if tuple(found.shape) != expected:
            raise UsageError(
                f"the sampler's routes of row {i} have the shape {tuple(found.shape)}",
                f"prompt and response, without the last token, make {expected} (tokens, layers, k): they do not belong "
                "to these tokens",
                "a sampler that returns the route of every token it reads, or routing_replay=r2 or off",
            )
        book.experts[i, : length - 1] = found.to(book.experts)
    return book
