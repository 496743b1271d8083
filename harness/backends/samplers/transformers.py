"""Sampling with the trainer's own model: KV cache, exact behaviour log-probs, counter-based random numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from harness.backends.samplers.decoders import Decoder, Forward, LibraryDecoder
from harness.backends.samplers.kernels import Attention, attention, held_head, packed_linears
from harness.backends.samplers.responses import Responses
from harness.backends.samplers.routes import RouteTrace
from harness.backends.samplers.slots import Layout, SlotDecoder, fits_slots
from harness.backends.samplers.stopping import StopStrings
from harness.core.errors import UsageError
from harness.core.ports import SampleRequest
from harness.core.routing import RouterSet, Watched
from harness.core.shapes import Tensor
from harness.core.types import Completion

COMPACT_BELOW = 0.75  # finished rows leave the batch once fewer than this share is still generating
REFILL_FROM = 8  # waiting requests are admitted once a slot in so many is free: one prompt at a time would cost more
SAME_BITS_BELOW = 10**6  # parameters; `tiny` has 100,288


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model is sampled; every plan has the same semantics and differs from another one in rounding at most."""

    layout: Layout | None  # None: the library's own cache
    attention: Attention | None = None  # None: the model's own
    pack: bool = False  # linear layers in the layout of the CPU's kernels
    refill: bool = False  # freed lines go to the requests that wait
    check_every: int = 1  # tokens; on a GPU the host asks less often who has finished


LIBRARY = Plan(layout=None)
# The library's results bit by bit, so that recorded traces of `tiny` hold.
SAME_BITS = Plan(layout=Layout(lines=1, columns=1, one_length=False), attention="harness_same_bits")
# A line's numbers hardly depend on what else is in the batch: most CPU kernels add up in the same order for any number
# of rows (packed linear layers) and any number of masked columns behind a row (whole vectors of them).
CPU = Plan(
    layout=Layout(lines=4, columns=16, one_length=True), attention="harness_grouped", pack=True, refill=True
)  # fmt: skip
CUDA = Plan(
    layout=Layout(lines=8, columns=32, one_length=False), attention="harness_grouped", refill=True, check_every=8
)  # fmt: skip


def choose_plan(policy: PreTrainedModel) -> Plan:
    """By device, size and cache of a model."""
    gpu = policy.device.type != "cpu"
    if not fits_slots(policy):
        return Plan(layout=None, check_every=CUDA.check_every if gpu else 1)
    if gpu:
        return CUDA
    return SAME_BITS if sum(p.numel() for p in policy.parameters()) < SAME_BITS_BELOW else CPU


class TransformersSampler:
    """Reads the policy it was given, so weight sync is only a change of the version stamp, and a `refresh` of a copy.

    Tokens are drawn by inverting the CDF at one uniform per (key, position): repeating a request under the same
    weights repeats its response, and sampling more responses never shifts the others.
    """

    name = "transformers"

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        batch_tokens: int,
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        plan: Plan | None = None,
        routers: RouterSet | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        """`batch_tokens`: lines x columns of the KV cache; `decode` is needed for stop strings only.

        With the `routers` of a mixture of experts, completions say which experts their tokens went to. `refresh` makes
        the policy that of the trainer again, where it is a copy.
        """
        if stop and decode is None:
            raise UsageError(
                f"stop strings {list(stop)}", "nothing decodes the tokens they are looked for in", "decode="
            )
        self._policy, self._batch_tokens = policy, batch_tokens
        self._forward = Forward(policy, pad_id, None if routers is None else Watched(routers))
        self._eos = torch.tensor(sorted(eos_ids), device=policy.device)
        self._stop = None if decode is None or not stop else StopStrings(stop, decode)
        self._plan = choose_plan(policy) if plan is None else plan
        # In full precision rounding may move a draw in one of millions of tokens; in half precision it often would,
        # and whether the kernels round a row alike in every batch depends on the processor.
        self.exact_repeat = policy.device.type == "cpu" and policy.dtype == torch.float32
        self._version = 0
        self._refresh = refresh

    def sync(self, version: int) -> None:
        if self._refresh is not None:
            self._refresh()
        self._version = version

    def close(self) -> None:
        pass

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        """Completions per request, in order. Prompts are read once, and what was read is shared by the siblings."""
        if not temperature >= 0:
            raise UsageError(f"temperature {temperature}", "not a temperature", "0 (greedy) or more")
        results: list[list[Completion]] = [[] for _ in requests]
        with ExitStack() as lent:
            if self._plan.attention is not None:
                lent.enter_context(attention(self._policy, self._plan.attention))
            if self._plan.pack:
                lent.enter_context(packed_linears(self._policy))
            lent.enter_context(held_head(self._policy))
            for batch in self._batches(requests, max_new_tokens):
                flat = self._generate([requests[i] for i in batch], max_new_tokens, temperature)
                for i in batch:
                    results[i] = [next(flat) for _ in requests[i].keys]
        return results

    def _batches(self, requests: Sequence[SampleRequest], new: int) -> Iterator[list[int]]:
        """Requests of similar prompt length.

        Without refill at most `batch_tokens` padded tokens; with it, any number of requests within a factor of two in
        width, of which as many are under way at a time.
        """
        widths = [len(r.prompt_ids) + new for r in requests]
        batch: list[int] = []
        lines = 0
        for i in sorted((i for i, r in enumerate(requests) if r.keys), key=widths.__getitem__):
            lines += len(requests[i].keys)
            if self._plan.refill:
                full = bool(batch) and widths[i] > 2 * widths[batch[0]]
            else:
                full = bool(batch) and lines * widths[i] > self._batch_tokens
            if full:
                yield batch
                batch, lines = [], len(requests[i].keys)
            batch.append(i)
        if batch:
            yield batch

    def _generate(self, requests: list[SampleRequest], new: int, temperature: float) -> Iterator[Completion]:
        keys = [key for r in requests for key in r.keys]
        trace = None
        if self._forward.watched is not None:
            trace = RouteTrace(len(keys), new, self._forward.watched.routers, self._eos.device)
        responses = Responses(keys, new, self._eos, self._stop, trace)
        columns = max(len(r.prompt_ids) for r in requests) + new
        slots = len(keys)
        if self._plan.refill:
            slots = min(slots, max(self._batch_tokens // columns, *(len(r.keys) for r in requests), 1))
        decoder: Decoder
        if self._plan.layout is None:
            decoder = LibraryDecoder(self._forward)
        else:
            decoder = SlotDecoder(self._forward, self._plan.layout, slots=slots, columns=columns)
        self._run(decoder, deque(requests), slots, responses, temperature, trace)
        return responses.completions(self._version)

    def _run(
        self,
        decoder: Decoder,
        waiting: deque[SampleRequest],
        slots: int,
        responses: Responses,
        temperature: float,
        trace: RouteTrace | None,
    ) -> None:
        """Until every response is over: admit what fits, draw, drop what has ended, and go one token further."""
        logits: list[Tensor] = []
        since = 0
        while waiting or responses.lines:
            admitted = _fitting(waiting, responses.lines, slots)
            if admitted:
                copies = [len(r.keys) for r in admitted]
                logits.append(decoder.admit([r.prompt_ids for r in admitted], copies))
                responses.begin(sum(copies))
                if trace is not None:
                    trace.prompts(decoder.prompt_routes, copies)
            tokens = responses.draw(logits[0] if len(logits) == 1 else torch.cat(logits), temperature)
            since += 1
            if since >= min(self._plan.check_every, responses.until_limit):
                since = 0
                index = self._survivors(responses.check(), waiting, slots)
                if index is not None:
                    responses.keep(index)
                    decoder.keep(index)
                    tokens = tokens[index]
            logits = [decoder.step(tokens, responses.alive)] if responses.lines else []
            if responses.lines and self._forward.watched is not None:
                responses.read(self._forward.watched.last[: responses.lines])

    def _survivors(self, alive: Sequence[bool], waiting: Sequence[SampleRequest], slots: int) -> Tensor | None:
        """Which lines stay, and in which order, where it pays to drop the others."""
        left = sum(alive)
        if left == len(alive):
            return None
        room = self._plan.refill and _room(waiting, left, slots)
        block = 1 if self._plan.layout is None else self._plan.layout.lines
        if left and not room and not _pays(left, len(alive), block):
            return None
        order = [i for i, a in enumerate(alive) if a] if block == 1 else _fill_gaps(alive)
        return torch.tensor(order, dtype=torch.long, device=self._policy.device)


def _pays(left: int, lines: int, block: int) -> bool:
    """Whether dropping lines is worth the copying: at once where whole blocks of them go, else once many have ended."""
    if block > 1:
        return -(-left // block) < -(-lines // block)
    return left < COMPACT_BELOW * lines


def _room(waiting: Sequence[SampleRequest], lines: int, slots: int) -> bool:
    """Whether the first waiting request fits beside `lines` lines, and enough slots are free to read prompts now."""
    return bool(waiting) and max(len(waiting[0].keys), slots // REFILL_FROM) <= slots - lines


def _fitting(waiting: deque[SampleRequest], lines: int, slots: int) -> list[SampleRequest]:
    """Takes requests from the front as long as all their siblings find a free slot."""
    taken: list[SampleRequest] = []
    if _room(waiting, lines, slots):
        while waiting and len(waiting[0].keys) <= slots - lines:
            lines += len(waiting[0].keys)
            taken.append(waiting.popleft())
    return taken


def _fill_gaps(alive: Sequence[bool]) -> list[int]:
    """Lines stay where they are, and the gaps between them are filled from the end: few have to move."""
    stay = [i for i, a in enumerate(alive) if a]
    left = len(stay)
    movers = iter([i for i in stay if i >= left])
    return [i if alive[i] else next(movers) for i in range(left)]
