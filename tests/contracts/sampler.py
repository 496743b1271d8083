"""What every Sampler must do. A test module subclasses `SamplerContract` and provides the fixture `subject`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def requests(prompts: Sequence[Ids], num_samples: int, first: int = 0) -> list[SampleRequest]:
    """Each prompt's keys hang on the prompt itself, so a request is the same wherever it stands."""
    return [
        SampleRequest(prompt_ids=p, keys=tuple((1, 2, hash(p), j, 0) for j in range(first, first + num_samples)))
        for p in prompts
    ]


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
        answers = sampler.generate(asked, max_new_tokens=LONG, temperature=temperature)
        for request, group in zip(asked, answers, strict=True):
            for c in group:
                logp, entropy = subject.score(request.prompt_ids, c.token_ids, temperature)
                np.testing.assert_allclose(c.logp, logp, atol=1e-4)
                if c.entropy is not None:
                    np.testing.assert_allclose(c.entropy, entropy, atol=1e-4)

    def test_a_response_depends_on_its_key_alone(self, subject: Subject, sampler: Sampler) -> None:
        if not sampler.exact_repeat:
            pytest.skip("this sampler does not claim exact repeats")
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
        asked = requests(subject.prompts, 6)
        free = flat(sampler.generate(asked, max_new_tokens=LONG, temperature=1.0))
        stopper = subject.build(subject.eos_ids, ("never in any text", subject.stop))
        stopped = flat(stopper.generate(asked, max_new_tokens=LONG, temperature=1.0))
        found = 0
        for a, b in zip(free, stopped, strict=True):
            ends = (i for i in range(1, len(a.token_ids) + 1) if subject.stop in subject.decode(a.token_ids[:i]))
            end = next(ends, None)
            assert b.token_ids == a.token_ids[:end]
            assert b.finish_reason == ("stop" if end else a.finish_reason)
            found += end is not None
        assert found

    def test_tokens_carry_the_policy_version(self, subject: Subject, sampler: Sampler) -> None:
        sampler.sync(7)
        for c in flat(sampler.generate(requests(subject.prompts, 2), max_new_tokens=LONG, temperature=1.0)):
            assert c.segments == ((len(c.token_ids), 7),)

    @pytest.mark.parametrize("temperature", [1.0, 1.8])
    def test_first_tokens_follow_the_policy(self, subject: Subject, sampler: Sampler, temperature: float) -> None:
        """Chi-square on 3,000 seeded draws; cells below 5 expected draws are pooled."""
        prompt, num = subject.prompts[0], 3000
        answers = sampler.generate(requests([prompt], num), max_new_tokens=1, temperature=temperature)[0]
        expected = subject.probabilities(prompt, temperature) * num
        observed = np.bincount([c.token_ids[0] for c in answers], minlength=len(expected))
        rare = expected < 5
        cells = [(observed[rare].sum(), expected[rare].sum())] if expected[rare].sum() > 0 else []
        cells += list(zip(observed[~rare], expected[~rare], strict=True))
        assert len(cells) > 2, "the distribution is too peaked to test anything"
        statistic = sum((o - e) ** 2 / e for o, e in cells)
        assert stats.chi2.sf(statistic, len(cells) - 1) > 1e-3
