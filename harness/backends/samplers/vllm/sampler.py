"""The Sampler port on a vLLM engine."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Final

from harness.backends.samplers.vllm.engine import Ask, Draft, Engine, SamplingRule
from harness.core.errors import InfrastructureError, UsageError
from harness.core.ports import SampleRequest
from harness.core.randomness import counter
from harness.core.routing import extended
from harness.core.types import Completion

LOWEST_TEMPERATURE: Final = 0.01  # below it vLLM samples at this one instead, silently
SEEDS: Final = 1 << 62
# A self-test draws this many tokens; the engine's and the trainer's mean log-probs of them may differ by LIMIT nats.
TEST_SAMPLES, TEST_TOKENS = 4, 16
LIMIT: Final = {
    "float32": 0.05,
    "float16": 0.1,
    "bfloat16": 0.5,
}  # measured: 1e-6 and .04; weights that did not arrive: 1 and more

Score = Callable[[tuple[int, ...], tuple[int, ...]], list[float]]  # the trainer's log-probs of a response to a prompt


class VllmSampler:
    """Samples with an engine that is given the trainer's weights after every update.

    The engine draws from a stream that every call starts anew, from the call's keys: a repeated run draws the same
    numbers, but which request gets which depends on how the engine batches them. So exact repeats are not promised, and
    arms share the order of the data only.
    """

    name = "vllm"
    exact_repeat = False

    def __init__(
        self,
        engine: Engine,
        *,
        eos_ids: Sequence[int],
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._engine, self._eos, self._stop, self._decode = engine, frozenset(eos_ids), tuple(stop), decode
        self._life = os.urandom(4).hex()  # tells this run's weights from those of any other that uses the server
        self._version: int | None = None

    def sync(self, version: int) -> None:
        """Weights -> engine. A failure leaves the sampler without weights until a later sync succeeds."""
        self._version = None
        self._engine.load(self._label(version))
        self._version = version

    def close(self) -> None:
        self._engine.close()

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        """Completions per request, in order; siblings share the prompt's cache."""
        if self._version is None:
            raise InfrastructureError(
                "vLLM holds no weights of this run: the last weight sync failed, and nothing may be sampled from a "
                "mixture of old and new ones; repeat the command to continue from the last checkpoint"
            )
        self._check(requests, max_new_tokens, temperature)
        if not requests:
            return []
        asks = [Ask(prompt_ids=r.prompt_ids, num_samples=len(r.keys), limit=max_new_tokens) for r in requests]
        drafts = self._sample(asks, temperature, requests, 0)
        flat = [(r.prompt_ids, d) for r, group in zip(requests, drafts, strict=True) for d in group]
        whole = iter(self._completed(flat, max_new_tokens, temperature, requests))
        return [[next(whole) for _ in r.keys] for r in requests]

    def self_test(self, prompt_ids: tuple[int, ...], score: Score, dtype: str) -> None:
        """Compares log-probs of freshly drawn tokens with the trainer's; InfrastructureError where they differ.

        Part of the model that the engine computes otherwise, or a weight that never arrives, shows here.
        """
        request = SampleRequest(prompt_ids=prompt_ids, keys=tuple((0, 0, 0, j, 0) for j in range(TEST_SAMPLES)))
        (answers,) = self.generate([request], max_new_tokens=TEST_TOKENS, temperature=1.0)
        pairs = [p for c in answers for p in zip(c.logp, score(prompt_ids, c.token_ids), strict=True)]
        gap = sum(abs(a - b) for a, b in pairs) / len(pairs)
        if not gap <= LIMIT[dtype]:  # NaN must fail too
            raise InfrastructureError(
                f"{self._engine.place} and the trainer give {len(pairs)} sampled tokens log-probs that differ by "
                f"{gap:.3g} nats on average (at most {LIMIT[dtype]} in {dtype}): this version of vLLM does not compute "
                "this model as transformers does; use --sampler transformers"
            )

    def _label(self, version: int) -> str:
        return f"{self._life}:{version}"

    def _check(self, requests: Sequence[SampleRequest], limit: int, temperature: float) -> None:
        if temperature < LOWEST_TEMPERATURE and temperature != 0:
            raise UsageError(
                f"temperature {temperature}", f"vLLM samples at {LOWEST_TEMPERATURE} or more, or greedily at 0",
                "--sampler transformers",
            )  # fmt: skip
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        if longest + limit > self._engine.context:
            raise UsageError(
                f"a prompt of {longest} tokens and responses of up to {limit}",
                f"{self._engine.place} has room for {self._engine.context} tokens together",
                "a larger KV cache (-s backend.engine.kv_cache_gib=..., on a GPU backend.engine.gpu_memory), a smaller "
                "recipe.max_new_tokens, or shorter prompts",
            )

    def _sample(
        self, asks: Sequence[Ask], temperature: float, requests: Sequence[SampleRequest], attempt: int
    ) -> list[list[Draft]]:
        keys = "/".join(str(key) for r in requests for key in r.keys)
        rule = SamplingRule(
            temperature=temperature,
            end_ids=tuple(sorted(self._eos)),
            stop=self._stop,
            seed=counter(f"{attempt} {keys}") % SEEDS,
        )
        drafts = self._engine.sample(asks, rule)
        assert self._version is not None
        expected = {self._label(self._version)}
        for draft in (d for group in drafts for d in group):
            if draft.labels != expected:
                found = ", ".join(sorted(draft.labels)) or "without a name"
                raise InfrastructureError(
                    f"{self._engine.place} sampled with the weights {found}, not with {self._label(self._version)}: "
                    "another run uses it, or it was started again; give each run a server of its own, then repeat the "
                    "command to continue from the last checkpoint"
                )
        return drafts

    def _completed(
        self,
        drafts: Sequence[tuple[tuple[int, ...], Draft]],
        limit: int,
        temperature: float,
        requests: Sequence[SampleRequest],
    ) -> list[Completion]:
        """Ends responses where our decoding shows a stop string; goes on where only the engine's did."""
        pieces = [[draft] for _, draft in drafts]
        attempt = 0
        while True:
            done = [self._ended(len(prompt), joined(p), limit) for (prompt, _), p in zip(drafts, pieces, strict=True)]
            going = [i for i, c in enumerate(done) if c is None]
            if not going:
                return [c for c in done if c is not None]
            attempt += 1
            asks = []
            for i in going:
                ids = joined(pieces[i]).token_ids
                asks.append(Ask(prompt_ids=drafts[i][0] + ids, num_samples=1, limit=limit - len(ids)))
            for i, (more,) in zip(going, self._sample(asks, temperature, requests, attempt), strict=True):
                pieces[i].append(more)

    def _ended(self, prompt: int, draft: Draft, limit: int) -> Completion | None:
        """The finished response, or None where it has to go on."""
        assert self._version is not None
        length, stopped = len(draft.token_ids), draft.token_ids[-1] in self._eos
        if self._shows_stop(draft.token_ids):  # and every longer part of it does
            length = 1 + bisect.bisect_left(
                range(1, length + 1), True, key=lambda n: self._shows_stop(draft.token_ids[:n])
            )
            stopped = True
        if not stopped and length < limit:
            return None
        return Completion(
            token_ids=draft.token_ids[:length],
            logp=draft.logp[:length],
            entropy=None if draft.entropy is None else draft.entropy[:length],
            segments=((length, self._version),),
            finish_reason="stop" if stopped else "length",
            routes=None if draft.routes is None else draft.routes[: prompt + length - 1],
        )

    def _shows_stop(self, ids: Sequence[int]) -> bool:
        if not self._stop or self._decode is None:
            return False
        text = self._decode(ids)
        return any(s in text for s in self._stop)


def joined(pieces: Sequence[Draft]) -> Draft:
    """One response out of its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    entropies = [p.entropy for p in pieces]
    return Draft(
        token_ids=tuple(t for p in pieces for t in p.token_ids),
        logp=tuple(x for p in pieces for x in p.logp),
        entropy=None if None in entropies else tuple(x for e in entropies if e is not None for x in e),
        labels=frozenset().union(*(p.labels for p in pieces)),
        routes=reduce(extended, (p.routes for p in pieces)),
    )
