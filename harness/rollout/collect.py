"""Prompts -> graded groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.core.errors import UsageError
from harness.core.ports import Response, Sampler, SampleRequest, SingleTurnTask, Task
from harness.core.randomness import counter
from harness.core.types import Completion, Grade, Prompt, RolloutGroup, Trajectory
from harness.rollout.codec import Codec, last_token, token_ends
from harness.rollout.episodes import Stage, begin, play, trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples and grades; holds no state of its own."""

    task: Task
    sampler: Sampler
    codec: Codec
    max_new_tokens: int
    temperature: float
    context: int  # tokens the model can attend to
    clock: Callable[[], float]

    def collect(
        self, prompts: Sequence[Prompt], num_samples: int, key: tuple[int, ...], before: Sequence[Prompt] = ()
    ) -> Collected:
        """`num_samples` graded responses per prompt; `key` = (seed, rollout) opens the random stream.

        A prompt that occurs again under the same key (`before`: the prompts it was used for) draws new numbers.
        """
        start = self.clock()
        seen = Counter(p.id for p in before)
        requests = []
        for prompt in prompts:
            requests.append(self._request(prompt, num_samples, key, seen[prompt.id]))
            seen[prompt.id] += 1
        completions = self.sampler.generate(requests, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        generated = self.clock()
        if isinstance(self.task, SingleTurnTask):
            groups = self._graded(self.task, prompts, requests, completions)
            return Collected(groups=groups, t_gen=generated - start, t_reward=self.clock() - generated)
        groups, waited = self._played(prompts, requests, completions)
        spent = self.clock() - start
        return Collected(groups=groups, t_gen=generated - start + waited, t_reward=spent - (generated - start) - waited)

    def _graded(
        self,
        task: SingleTurnTask,
        prompts: Sequence[Prompt],
        requests: Sequence[SampleRequest],
        completions: Sequence[Sequence[Completion]],
    ) -> list[RolloutGroup]:
        piece = lru_cache(maxsize=None)(lambda i: self.codec.decode((i,)))
        responses = [
            Response(prompt=p, text=self.codec.decode(c.token_ids), finish_reason=c.finish_reason)
            for p, answers in zip(prompts, completions, strict=True)
            for c in answers
        ]
        texts, grades = iter([r.text for r in responses]), iter(task.grade_many(responses))
        groups = []
        for prompt, request, answers in zip(prompts, requests, completions, strict=True):
            rows = tuple(
                self._trajectory(prompt, request, j, c, next(texts), next(grades), piece) for j, c in enumerate(answers)
            )
            groups.append(RolloutGroup(prompt=prompt, trajectories=rows))
        return groups

    def _played(
        self,
        prompts: Sequence[Prompt],
        requests: Sequence[SampleRequest],
        completions: Sequence[Sequence[Completion]],
    ) -> tuple[list[RolloutGroup], float]:
        """Episodes of a task with several turns, and the seconds that the turns after the first took to generate."""
        waited = 0.0

        def generate(wanted: Sequence[SampleRequest]) -> list[list[Completion]]:
            nonlocal waited
            start = self.clock()
            found = self.sampler.generate(wanted, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
            waited += self.clock() - start
            return found

        piece = lru_cache(maxsize=None)(lambda i: self.codec.decode((i,)))
        families = [[*begin(self.task, p, r)] for p, r in zip(prompts, requests, strict=True)]
        stage = Stage(
            task=self.task, codec=self.codec, context=self.context,
            max_new_tokens=self.max_new_tokens, generate=generate,
        )  # fmt: skip
        play([e for family in families for e in family], [c for answers in completions for c in answers], stage)
        return [
            RolloutGroup(prompt=p, trajectories=tuple(trajectory(e, self.codec, piece) for e in family))
            for p, family in zip(prompts, families, strict=True)
        ], waited

    def _request(self, prompt: Prompt, num_samples: int, key: tuple[int, ...], repeat: int) -> SampleRequest:
        ids = self.codec.encode(prompt.messages)
        if len(ids) + self.max_new_tokens > self.context:
            raise UsageError(
                f"prompt {prompt.id} of {len(ids)} tokens and responses of up to {self.max_new_tokens}",
                f"the model attends to {self.context} tokens",
                f"--set recipe.max_new_tokens={max(1, self.context - len(ids))} or less, or shorter prompts",
            )
        name = counter(f"{prompt.id} again {repeat}" if repeat else prompt.id)
        return SampleRequest(prompt_ids=ids, keys=tuple((*key, name, j, 0) for j in range(num_samples)))

    def _trajectory(
        self,
        prompt: Prompt,
        request: SampleRequest,
        sample: int,
        done: Completion,
        text: str,
        grade: Grade,
        piece: Callable[[int], str],
    ) -> Trajectory:
        credit: tuple[tuple[int, float], ...] = ()
        if grade.credit:
            ends = token_ends(done.token_ids, text, piece, self.codec.decode)
            found = ((last_token(ends, c.span), c.reward) for c in grade.credit)
            credit = tuple((end, reward) for end, reward in found if end is not None)
        return Trajectory(
            prompt=prompt,
            sample=sample,
            prompt_ids=request.prompt_ids,
            response_ids=done.token_ids,
            loss_mask=(True,) * len(done.token_ids),
            logp=done.logp,
            entropy=done.entropy,
            segments=done.segments,
            finish_reason=done.finish_reason,
            text=text,
            grade=grade,
            credit=credit,
            routes=done.routes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Graded groups and where the time went."""

    groups: list[RolloutGroup]
    t_gen: float  # seconds
    t_reward: float
