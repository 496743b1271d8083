"""Rollout engines with one mistake each, around a real sampler: what the start-up self-test is there to find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.core.ports import Sampler, SampleRequest
from harness.core.types import Completion


class WrongSampler:
    """Passes requests and completions through, each changed by a function; keeps the real sampler's name."""

    def __init__(
        self,
        inner: Sampler,
        *,
        request: Callable[[SampleRequest], SampleRequest] = lambda r: r,
        completion: Callable[[Completion], Completion] = lambda c: c,
        heat: float = 1.0,
    ) -> None:
        self._inner, self._request, self._completion, self._heat = inner, request, completion, heat
        self.name, self.exact_repeat = inner.name, inner.exact_repeat

    def sync(self, version: int) -> None:
        self._inner.sync(version)

    def close(self) -> None:
        self._inner.close()

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        asked = [self._request(r) for r in requests]
        found = self._inner.generate(asked, max_new_tokens=max_new_tokens, temperature=temperature * self._heat)
        return [[self._completion(c) for c in group] for group in found]


class LikelierSampler(WrongSampler):
    """Keeps the likeliest of several draws: log-probs are right, but the samples are not the policy's."""

    draws = 8

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        tries = []
        for turn in range(self.draws):
            asked = [replace(r, keys=tuple((*key[:-1], key[-1] + turn) for key in r.keys)) for r in requests]
            tries.append(self._inner.generate(asked, max_new_tokens=max_new_tokens, temperature=temperature))
        return [
            [max(same, key=lambda c: sum(c.logp)) for same in zip(*group, strict=True)]
            for group in zip(*tries, strict=True)
        ]


def hotter(inner: Sampler) -> Sampler:
    """Samples at 1.2 times the temperature."""
    return WrongSampler(inner, heat=1.2)


def colder(inner: Sampler) -> Sampler:
    """Samples at .6 times the temperature."""
    return WrongSampler(inner, heat=0.6)


def drops_ends(inner: Sampler) -> Sampler:
    """Takes the end token off finished responses."""

    def cut(c: Completion) -> Completion:
        if c.finish_reason != "stop" or len(c.token_ids) < 2:
            return c
        return replace(c, token_ids=c.token_ids[:-1], logp=c.logp[:-1], entropy=(c.entropy or ())[:-1])

    return WrongSampler(inner, completion=cut)


def goes_on(inner: Sampler) -> Sampler:
    """Adds a token after the end token."""

    def longer(c: Completion) -> Completion:
        if c.finish_reason != "stop":
            return c
        return replace(
            c,
            token_ids=(*c.token_ids, c.token_ids[0]),
            logp=(*c.logp, -0.1),
            entropy=(*(c.entropy or ()), 0.1),
        )

    return WrongSampler(inner, completion=longer)


def calls_all_cut(inner: Sampler) -> Sampler:
    """Says `length` whatever ended a response."""
    return WrongSampler(inner, completion=lambda c: replace(c, finish_reason="length"))


def other_template(inner: Sampler) -> Sampler:
    """Sees the prompt with its first token twice, as with a second start token."""
    return WrongSampler(inner, request=lambda r: replace(r, prompt_ids=(r.prompt_ids[0], *r.prompt_ids)))


def one_seed_per_prompt(inner: Sampler) -> Sampler:
    """Answers every sibling from the first one's random numbers."""
    return WrongSampler(inner, request=lambda r: replace(r, keys=(r.keys[0],) * len(r.keys)))


def unnormalised(inner: Sampler) -> Sampler:
    """Reports logits above 0 as log-probs."""
    return WrongSampler(inner, completion=lambda c: replace(c, logp=tuple(x + 1.0 for x in c.logp)))


def likelier(inner: Sampler) -> Sampler:
    """See `LikelierSampler`."""
    return LikelierSampler(inner)
