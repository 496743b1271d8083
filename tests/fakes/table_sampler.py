"""A sampler whose policy is a table: one distribution over a handful of words, whatever came before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from harness.core.ports import SampleRequest
from harness.core.randomness import uniforms
from harness.core.types import Completion


class TableSampler:
    """Draws every token from softmax(logits / temperature) at the request's uniforms.

    `logits` may change in place; the sampler follows at the next sync.
    """

    name = "table"
    exact_repeat = True

    def __init__(
        self,
        logits: Sequence[float],
        eos_ids: Sequence[int],
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] = str,
    ) -> None:
        self._policy, self._eos, self._stop, self._decode = logits, set(eos_ids), tuple(stop), decode
        self.sync(0)

    def sync(self, version: int) -> None:
        self._logits = np.array(self._policy)
        self._version = version

    def close(self) -> None:
        pass

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        p = table_probabilities(self._logits, temperature)
        return [[self._complete(p, u) for u in uniforms(request.keys, max_new_tokens)] for request in requests]

    def _complete(self, p: np.ndarray, u: np.ndarray) -> Completion:
        ids: list[int] = []
        stopped = False
        for x in u:
            ids.append(int(np.searchsorted(p.cumsum(), x * p.sum(), side="right")))
            stopped = ids[-1] in self._eos or any(s in self._decode(ids) for s in self._stop)
            if stopped:
                break
        return Completion(
            token_ids=tuple(ids),
            logp=tuple(float(np.log(p[i])) for i in ids),
            entropy=(float(-(p * np.log(p)).sum()),) * len(ids),
            segments=((len(ids), self._version),),
            finish_reason="stop" if stopped else "length",
        )


def table_probabilities(logits: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature)."""
    weights = np.exp(np.asarray(logits) / temperature)
    return np.asarray(weights / weights.sum())


class ScriptedSampler:
    """Answers by a function of prompt tokens and key; log-probs and entropies are made up."""

    name = "scripted"
    exact_repeat = True

    def __init__(self, answer: Callable[[tuple[int, ...], tuple[int, ...]], Sequence[int]]) -> None:
        self._answer = answer
        self.asked: list[SampleRequest] = []

    def sync(self, version: int) -> None:
        pass

    def close(self) -> None:
        pass

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        self.asked += requests
        return [[self._complete(r.prompt_ids, key, max_new_tokens) for key in r.keys] for r in requests]

    def _complete(self, prompt: tuple[int, ...], key: tuple[int, ...], limit: int) -> Completion:
        ids = tuple(self._answer(prompt, key))
        cut = ids[:limit]
        return Completion(
            token_ids=cut,
            logp=(-0.5,) * len(cut),
            entropy=(0.7,) * len(cut),
            segments=((len(cut), 0),),
            finish_reason="stop" if len(ids) <= limit else "length",
        )
