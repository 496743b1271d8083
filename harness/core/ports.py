"""The ports: what the core asks of samplers, tasks, executors and trackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.core.types import Completion, Done, FinishReason, Grade, Message, Observation, Prompt

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """What a task declares about itself."""

    name: str
    reward_range: tuple[float, float]  # bounds of `Grade.score`
    threshold: float  # `correct` means score >= threshold
    graded: bool = False  # the score takes more than two values
    credit: bool = False  # grades carry process rewards
    components: tuple[str, ...] = ()  # names of the parts of the reward that grades carry
    verdict_held_out: bool = False  # the score is a learned reward; `correct` is the true metric, not for training
    max_turns: int = 1  # after which an episode is over at the latest
    self_testable: bool = True  # gold answers are graded right, those of other items wrong; False: known not to be
    sizes: Mapping[Split, int | None] = field(default_factory=dict)  # number of items; None = endless
    description: str = ""
    data_sha256: str | None = None  # of the file the items come from
    isolation: str | None = None  # what keeps programs that the policy writes from this machine, where a task runs them


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A finished turn of an episode, to be answered."""

    state: Any
    text: str  # special tokens removed
    finish_reason: FinishReason


class Task(ABC):
    """A dataset with prompts and a grader. Items of the three splits are disjoint by content."""

    info: TaskInfo

    @abstractmethod
    def item(self, split: Split, index: int) -> Prompt:
        """Item `index` of a split: the same for the same arguments, always."""

    @abstractmethod
    def start(self, prompt: Prompt) -> Any:
        """The state of a fresh episode."""

    @abstractmethod
    def step(self, state: Any, text: str, finish_reason: FinishReason) -> tuple[Any, Observation | Done]:
        """One turn: new state and the environment's reply, or the grade that ends the episode."""

    def step_many(self, turns: Sequence[Turn]) -> list[tuple[Any, Observation | Done]]:
        """`step` for turns of different episodes, in order; tasks that grade in other processes do it at once."""
        return [self.step(t.state, t.text, t.finish_reason) for t in turns]

    @property
    def verifier(self) -> Task:
        """The task whose verdicts the start-up check tries; another one where the reward is learned."""
        return self

    def gold(self, prompt: Prompt) -> str | None:
        """A response that is graded correct; None where the task cannot tell one."""
        return None

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """Responses whose verdict is known, as (text, correct): what the start-up check of the verifier grades."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A finished response, to be graded."""

    prompt: Prompt
    text: str  # special tokens removed
    finish_reason: FinishReason


class SingleTurnTask(Task):
    """A task whose episode is one response; subclasses grade it."""

    @abstractmethod
    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        """The verdict on one response text (special tokens removed)."""

    def grade_many(self, responses: Sequence[Response]) -> list[Grade]:
        """The verdicts on a rollout's responses, in order; tasks that grade in other processes do it at once."""
        return [self.grade(r.prompt, r.text, r.finish_reason) for r in responses]

    def start(self, prompt: Prompt) -> Prompt:
        return prompt

    def step(self, state: Prompt, text: str, finish_reason: FinishReason) -> tuple[Prompt, Done]:
        return state, Done(grade=self.grade(state, text, finish_reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A learned reward of one response."""

    value: float | None  # None: no score could be had
    why: str = ""  # why not


class Scorer(ABC):
    """A learned reward: a reward model or a judge."""

    name: str
    sha256: str  # of everything that can change a score
    reward_range: tuple[float, float]

    @abstractmethod
    def score(self, responses: Sequence[Response]) -> list[Scored]:
        """Rewards of a rollout's responses, in order; a failure is a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One prompt to answer `num_samples` times; `keys` are the counters of the random stream."""

    prompt_ids: tuple[int, ...]
    keys: tuple[tuple[int, ...], ...]  # one per sample: (seed, rollout, prompt, sample, turn)


class Sampler(Protocol):
    """Prompts -> completions under the current policy."""

    name: str
    exact_repeat: bool  # the same keys and weights give the same tokens, whatever else is in the batch

    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        """Completions per request, in order."""

    def sync(self, version: int) -> None:
        """Takes over the trainer's current weights and stamps them with `version`."""

    def close(self) -> None:
        """Frees what the engine holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandle:
    """A submitted run."""

    run_id: str
    folder: Path


RunState = Literal["waiting", "running", "done", "failed", "cancelled"]


class Executor(Protocol):
    """Runs RunSpecs somewhere. Workers only execute runs; only controllers decide what runs."""

    def submit(self, spec: Any, folder: Path) -> RunHandle: ...

    def poll(self) -> Mapping[str, RunState]: ...

    def cancel(self, run_id: str) -> None: ...

    def list(self) -> list[RunHandle]: ...


class Tracker(Protocol):
    """A mirror of run folders. Never raises into a study."""

    def mirror(self, study: Path) -> None:
        """Copies what is new in the study's run folders."""

    def close(self) -> None: ...


__all__ = [
    "Executor",
    "Message",
    "Response",
    "RunHandle",
    "RunState",
    "SampleRequest",
    "Sampler",
    "Scored",
    "Scorer",
    "SingleTurnTask",
    "Split",
    "Task",
    "TaskInfo",
    "Tracker",
    "Turn",
]
