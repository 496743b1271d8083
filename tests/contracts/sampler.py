"""What every Sampler must do. A test module subclasses `SamplerContract` and provides the fixture `subject`.

One that claims exact repeats (`exact_repeat`) subclasses `ExactRepeatContract`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from harness.core.ports import Sampler, SampleRequest
from harness.core.types import Completion

Ids = tuple[int, ...]
LONG = 24  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A sampler's policy, seen from outside."""

    build: Callable[[Ids, tuple[str, ...]], Sampler]  # from end ids and stop strings
    eos_ids: Ids
    other_end: int  # a frequent token that could be a second end id
    stop: str  # a string that responses often contain, the text of `other_end`
    prompts: tuple[Ids, ...]  # of different lengths
    score: Callable[[Ids, Ids, float], tuple[list[float], list[float]]]  # trainer's log-probs; exact entropies
    probabilities: Callable[[Ids, float], np.ndarray]  # of the first token
    decode: Callable[[Sequence[int]], str]
    other_weights: Callable[[], AbstractContextManager[None]]  # quite another policy for the time of a `with`


def requests(prompts: Sequence[Ids], num_samples: int, first: int = 0) -> list[SampleRequest]:
    """Each prompt's keys hang on the prompt itself, so a request is the same wherever it stands."""
    return [request(p, num_samples, first) for p in prompts]


def request(prompt: Ids, num_samples: int, first: int = 0) -> SampleRequest:
    keys = tuple((1, 2, hash(prompt), j, 0) for j in range(first, first + num_samples))
    return SampleRequest(prompt_ids=prompt, keys=keys)


def flat(results: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [c for group in results for c in group]


class SamplerContract:
    """Subclass it as `Test...` with a fixture `subject`."""

    @pytest.fixture
    def sampler(self, subject: Subject) -> Sampler:
        return subject.build(subject.eos_ids, ())

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
    def test_log_probs_are_the_trainers_and_entropies_exact(
        self, subject: Subject, sampler: Sampler, temperature: float
    ) -> None:
        asked = requests(subject.prompts, 3)
        check_scores(subject, asked, sampler.generate(asked, max_new_tokens=LONG, temperature=temperature), temperature)

    def test_a_later_turn_is_scored_in_the_context_of_the_earlier_ones(
        self, subject: Subject, sampler: Sampler
    ) -> None:
        """Episodes of several turns: a request of its own for each response, with all that was said before."""
        asked = requests(subject.prompts, 3)
        said = sampler.generate(asked, max_new_tokens=6, temperature=1.3)
        second = [
            SampleRequest(prompt_ids=(*r.prompt_ids, *c.token_ids, *reply), keys=((*key[:-1], 1),))
            for r, group, reply in zip(asked, said, subject.prompts[::-1], strict=True)
            for key, c in zip(r.keys, group, strict=True)
        ]
        check_scores(subject, second, sampler.generate(second, max_new_tokens=6, temperature=1.3), 1.3)

    def test_requests_are_answered_in_order_and_number(self, subject: Subject, sampler: Sampler) -> None:
        """A prompt may come twice; log-probs that belong to another prompt would not be its own."""
        numbers = [1, 5, 2, 3, 4]
        asked = [request(p, n) for p, n in zip([*subject.prompts, subject.prompts[0]] * 2, numbers, strict=False)]
        answers = sampler.generate(asked, max_new_tokens=6, temperature=1.3)
        assert [len(group) for group in answers] == numbers[: len(asked)]
        check_scores(subject, asked, answers, 1.3)

    def test_siblings_differ(self, subject: Subject, sampler: Sampler) -> None:
        (group,) = sampler.generate(requests(subject.prompts[:1], 24), max_new_tokens=LONG, temperature=1.6)
        assert len({c.token_ids for c in group}) > 6

    def test_nothing_asked_gives_nothing(self, sampler: Sampler) -> None:
        assert sampler.generate([], max_new_tokens=3, temperature=1.0) == []

    def test_ends_and_finish_reasons(self, subject: Subject, sampler: Sampler) -> None:
        self.check_ends(subject, sampler, subject.eos_ids)

    def test_several_end_ids(self, subject: Subject) -> None:
        ends = (*subject.eos_ids, subject.other_end)
        last = self.check_ends(subject, subject.build(ends, ()), ends)
        assert subject.other_end in last

    def check_ends(self, subject: Subject, sampler: Sampler, ends: Ids) -> set[int]:
        answers = []
        for limit in (1, 4, LONG):
            for c in flat(sampler.generate(requests(subject.prompts, 6), max_new_tokens=limit, temperature=1.0)):
                assert 1 <= len(c.token_ids) <= limit
                assert len(c.logp) == len(c.token_ids)
                assert c.entropy is None or len(c.entropy) == len(c.token_ids)
                assert not set(c.token_ids[:-1]) & set(ends), "nothing may follow an end token"
                assert c.finish_reason == ("stop" if c.token_ids[-1] in ends else "length")
                assert c.finish_reason == "stop" or len(c.token_ids) == limit
                answers.append(c)
        assert {c.finish_reason for c in answers} == {"stop", "length"}
        return {c.token_ids[-1] for c in answers}

    def test_stop_strings_end_a_response(self, subject: Subject, sampler: Sampler) -> None:
        """The token that completes one is the last; a stop string ends as an end token does."""
        stopper = subject.build(subject.eos_ids, ("never in any text", subject.stop))
        asked = requests(subject.prompts, 8)
        answers = stopper.generate(asked, max_new_tokens=LONG, temperature=1.0)
        check_scores(subject, asked, answers, 1.0)
        found = 0
        for c in flat(answers):
            end = first_stop(subject, c.token_ids)
            assert end in (None, len(c.token_ids))
            assert not set(c.token_ids[:-1]) & set(subject.eos_ids)
            ended = end is not None or c.token_ids[-1] in subject.eos_ids
            assert c.finish_reason == ("stop" if ended else "length")
            assert ended or len(c.token_ids) == LONG
            found += end is not None
        assert found

    def test_tokens_carry_the_policy_version(self, subject: Subject, sampler: Sampler) -> None:
        for version in (7, 3):
            sampler.sync(version)
            for c in flat(sampler.generate(requests(subject.prompts, 2), max_new_tokens=LONG, temperature=1.0)):
                assert c.segments == ((len(c.token_ids), version),)

    def test_a_sync_brings_the_new_weights_and_all_of_them(self, subject: Subject, sampler: Sampler) -> None:
        """Log-probs and draws are those of the policy after its weights were changed, and again after the way back."""
        prompt = subject.prompts[0]
        old = subject.probabilities(prompt, 1.0)
        with subject.other_weights():
            new = subject.probabilities(prompt, 1.0)
            assert np.abs(new - old).sum() > 0.2, "these weights are not other ones"
            sampler.sync(1)
            self.check_weights(subject, sampler, new)
        sampler.sync(2)
        self.check_weights(subject, sampler, old)

    def check_weights(self, subject: Subject, sampler: Sampler, expected: np.ndarray) -> None:
        asked = requests(subject.prompts, 4)
        check_scores(subject, asked, sampler.generate(asked, max_new_tokens=LONG, temperature=1.0), 1.0)
        (group,) = sampler.generate(requests(subject.prompts[:1], 1500), max_new_tokens=1, temperature=1.0)
        assert chi_square(group, expected) > 1e-3

    @pytest.mark.parametrize("temperature", [1.0, 1.8])
    def test_first_tokens_follow_the_policy(self, subject: Subject, sampler: Sampler, temperature: float) -> None:
        """Chi-square on 3,000 seeded draws; cells below 5 expected draws are pooled."""
        prompt, num = subject.prompts[0], 3000
        answers = sampler.generate(requests([prompt], num), max_new_tokens=1, temperature=temperature)[0]
        assert chi_square(answers, subject.probabilities(prompt, temperature)) > 1e-3


class ExactRepeatContract(SamplerContract):
    """Besides: what a sampler does that claims exact repeats."""

    def test_it_claims_them(self, sampler: Sampler) -> None:
        assert sampler.exact_repeat

    def test_a_response_depends_on_its_key_alone(self, subject: Subject, sampler: Sampler) -> None:
        asked = requests(subject.prompts, 4)
        together = sampler.generate(asked, max_new_tokens=LONG, temperature=1.0)
        backwards = sampler.generate(asked[::-1], max_new_tokens=LONG, temperature=1.0)[::-1]
        alone = [sampler.generate([r], max_new_tokens=LONG, temperature=1.0)[0] for r in asked]
        last = [g[0] for g in sampler.generate(requests(subject.prompts, 1, 3), max_new_tokens=LONG, temperature=1.0)]
        for other in (backwards, alone):
            assert [c.token_ids for c in flat(other)] == [c.token_ids for c in flat(together)]
        assert [c.token_ids for c in last] == [g[3].token_ids for g in together]
        assert len({c.token_ids for c in flat(together)}) > len(subject.prompts), "different keys must differ"

    def test_a_lower_limit_only_cuts(self, subject: Subject, sampler: Sampler) -> None:
        asked = requests(subject.prompts, 4)
        whole = flat(sampler.generate(asked, max_new_tokens=LONG, temperature=1.0))
        for limit in (1, 3):
            cut = flat(sampler.generate(asked, max_new_tokens=limit, temperature=1.0))
            assert [c.token_ids for c in cut] == [c.token_ids[:limit] for c in whole]

    def test_a_stop_string_only_cuts(self, subject: Subject, sampler: Sampler) -> None:
        asked = requests(subject.prompts, 6)
        free = flat(sampler.generate(asked, max_new_tokens=LONG, temperature=1.0))
        stopper = subject.build(subject.eos_ids, ("never in any text", subject.stop))
        stopped = flat(stopper.generate(asked, max_new_tokens=LONG, temperature=1.0))
        for a, b in zip(free, stopped, strict=True):
            end = first_stop(subject, a.token_ids)
            assert b.token_ids == a.token_ids[:end]
            assert b.finish_reason == ("stop" if end else a.finish_reason)


def first_stop(subject: Subject, ids: Ids) -> int | None:
    """Tokens up to the one that completes the stop string."""
    return next((i for i in range(1, len(ids) + 1) if subject.stop in subject.decode(ids[:i])), None)


def check_scores(
    subject: Subject, asked: Sequence[SampleRequest], answers: Sequence[Sequence[Completion]], temperature: float
) -> None:
    """Behaviour log-probs are those the trainer computes for the same tokens; entropies too, where there are any."""
    for r, group in zip(asked, answers, strict=True):
        for c in group:
            logp, entropy = subject.score(r.prompt_ids, c.token_ids, temperature)
            np.testing.assert_allclose(c.logp, logp, rtol=0, atol=1e-4)
            if c.entropy is not None:
                np.testing.assert_allclose(c.entropy, entropy, rtol=0, atol=1e-4)


def chi_square(answers: Sequence[Completion], probabilities: np.ndarray) -> float:
    """p-value of the first tokens under the probabilities."""
    expected = probabilities * len(answers)
    observed = np.bincount([c.token_ids[0] for c in answers], minlength=len(expected))
    rare = expected < 5
    cells = [(observed[rare].sum(), expected[rare].sum())] if expected[rare].sum() > 0 else []
    cells += list(zip(observed[~rare], expected[~rare], strict=True))
    assert len(cells) > 2, "the distribution is too peaked to test anything"
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))
