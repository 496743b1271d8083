"""Prompts -> graded groups. The episode loop of multi-turn tasks belongs here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.core.errors import UsageError
from harness.core.ports import Response, Sampler, SampleRequest, SingleTurnTask, Task
from harness.core.randomness import counter
from harness.core.types import Completion, Done, Grade, Prompt, RolloutGroup, Trajectory
from harness.rollout.codec import Codec, last_token, token_ends


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
        piece = lru_cache(maxsize=None)(lambda i: self.codec.decode((i,)))
        responses = [
            Response(prompt=p, text=self.codec.decode(c.token_ids), finish_reason=c.finish_reason)
            for p, answers in zip(prompts, completions, strict=True)
            for c in answers
        ]
        texts, grades = iter([r.text for r in responses]), iter(self._grades(responses))
        groups = []
        for prompt, request, answers in zip(prompts, requests, completions, strict=True):
            rows = tuple(
                self._trajectory(prompt, request, j, c, next(texts), next(grades), piece) for j, c in enumerate(answers)
            )
            groups.append(RolloutGroup(prompt=prompt, trajectories=rows))
        return Collected(groups=groups, t_gen=generated - start, t_reward=self.clock() - generated)

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

    def _grades(self, responses: Sequence[Response]) -> list[Grade]:
        if isinstance(self.task, SingleTurnTask):
            return self.task.grade_many(responses)
        return [self._played(r) for r in responses]

    def _played(self, response: Response) -> Grade:
        _, reply = self.task.step(self.task.start(response.prompt), response.text, response.finish_reason)
        if not isinstance(reply, Done):
            raise UsageError(
                f"task {self.task.info.name}", "it answered a response with another turn", "a single-turn task"
            )
        return reply.grade

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
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Graded groups and where the time went."""

    groups: list[RolloutGroup]
    t_gen: float  # seconds
    t_reward: float
