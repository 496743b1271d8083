"""The vocabulary of the project: what the stages hand to one another.

Axes: B rows (responses), T response positions, G siblings of a prompt. Every per-token quantity is `[B, T]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import torch

from harness.core.shapes import Bool, Float, Int, Tensor

FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One item of a task."""

    id: str  # stable and unique in the task; derived from the content
    messages: tuple[Message, ...]  # what the policy is shown, before the chat template
    answer: Any  # opaque key that only the task's grader reads
    difficulty: str | None = None  # a tag for breakdowns


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a sampler returns for one request."""

    token_ids: tuple[int, ...]  # response tokens, EOS included where it was sampled
    logp: tuple[float, ...]  # behaviour log-prob of each token, at the sampling temperature
    entropy: tuple[float, ...] | None  # exact entropy in nats of each position, where the sampler can tell
    segments: tuple[tuple[int, int], ...]  # (number of tokens, policy version) in order
    finish_reason: FinishReason  # "stop": an end token or stop string; "length": cut at the limit
    routes: Tensor | None = None  # experts [prompt + T - 1, layers, k] of the tokens that were read, of an MoE


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """A reward for one span of a response (a process step, a turn)."""

    turn: int  # index of the turn the span lies in
    span: tuple[int, int]  # character range in that turn's text; its last token earns the reward
    name: str  # which kind of step
    reward: float  # in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A task's verdict on one response."""

    score: float  # the task reward, inside the task's declared range
    correct: bool  # the task's own threshold on it
    components: Mapping[str, float] = field(default_factory=dict)  # named parts of the reward
    extracted: str | None = None  # the answer that was read out of the response
    why: str = ""  # one phrase: right, wrong, no answer, cut off, ...
    failed: bool = False  # no verdict could be had (time limit, exception, unreadable gold); `why` says which
    credit: tuple[Credit, ...] = ()  # dense credit, where the task has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The environment's reply between two turns; its tokens never enter the loss."""

    messages: tuple[Message, ...]
    reward: float = 0.0  # what the turn that it answers earned; the last turn earns the rest of the score


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The episode ended."""

    grade: Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One graded response."""

    prompt: Prompt
    sample: int  # index among the prompt's siblings
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]  # True where the policy produced the token
    logp: tuple[float, ...]  # behaviour log-probs; 0 at observation tokens
    entropy: tuple[float, ...] | None
    segments: tuple[tuple[int, int], ...]
    finish_reason: FinishReason
    text: str
    grade: Grade
    credit: tuple[tuple[int, float], ...] = ()  # (index of the step's last token, reward)
    turns: tuple[tuple[int, float], ...] = ()  # (index of the turn's last token, reward); empty where a task has one
    routes: Tensor | None = None  # experts [prompt + response - 1, layers, k], where the sampler tells

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy produced."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The siblings of one prompt."""

    prompt: Prompt
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCredit:
    """Rewards of the steps or of the turns of a batch, one entry each; steps in any order, turns row by row."""

    row: Int[Tensor, "S"]  # which row the step belongs to
    end: Int[Tensor, "S"]  # position of its last token
    reward: Float[Tensor, "S"]  # of a process step in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """A rollout batch as tensors. Masked positions may hold anything."""

    prompt_ids: tuple[tuple[int, ...], ...]  # per row, unpadded
    response_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]  # True = a token the policy produced
    behaviour_logp: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None  # exact, from the sampler
    group: Int[Tensor, "B"]  # 0..N-1, any order
    reward: Float[Tensor, "B"]  # task reward, before shaping
    correct: Bool[Tensor, "B"]
    truncated: Bool[Tensor, "B"]
    components: Mapping[str, Float[Tensor, "B"]]
    credit: StepCredit | None
    trajectories: tuple[Trajectory, ...]  # the rows as they came, for samples and rollout files
    policy_version: Int[Tensor, "B"] | None = None  # oldest weights that sampled a row, as stamped; None = unknown
    turns: StepCredit | None = None  # what each turn earned, in the order of the turns; None in single-turn tasks

    @property
    def num_rows(self) -> int:
        return int(self.mask.shape[0])

    @property
    def num_groups(self) -> int:
        return int(self.group.max()) + 1 if self.num_rows else 0

    @property
    def fresh(self) -> Bool[Tensor, "B"]:
        """Rows of the newest policy in the batch; the others were carried over from an earlier one."""
        if self.policy_version is None or not self.num_rows:
            return torch.ones_like(self.correct)
        return self.policy_version == self.policy_version.max()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """Denominators of one mini-batch, over all its micro-batches and ranks; never computed inside a part."""

    tokens: float  # N, unmasked tokens
    rows: float  # B, rows
    rows_nonempty: float  # B+, rows with at least one token
    width: float  # L, the constant of `seq-mean-token-sum-norm`
    group_tokens: Float[Tensor, "B"] | None = None  # tokens of each row's group, for scope=group
    groups: float = 1.0  # groups that contribute, for scope=group
    micro_batches: float = 1.0  # into which the mini-batch is split, for scope=micro


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One micro-batch's loss and the intermediates that diagnostics are made of (all detached but `loss`)."""

    loss: Float[Tensor, ""]
    policy_loss: Float[Tensor, ""]
    penalties: Mapping[str, Float[Tensor, ""]]  # unweighted aggregated value by name
    ratio: Float[Tensor, "B T"]
    clipped_low: Bool[Tensor, "B T"]  # the lower bound is active
    clipped_high: Bool[Tensor, "B T"]
    clipped_dual: Bool[Tensor, "B T"]
    outside: Bool[Tensor, "B T"]  # outside the range, whatever the sign of the advantage
    finite: Bool[Tensor, ""]  # log-probs, advantages and loss are; otherwise the optimizer step must be skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTrace:
    """What one optimizer step saw, over its contributing rows; the raw material of update-time metrics."""

    logp: Float[Tensor, "B T"]
    old_logp: Float[Tensor, "B T"]  # what the ratio divides by, with the noise put into it
    behaviour_logp: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    clipped_low: Bool[Tensor, "B T"]
    clipped_high: Bool[Tensor, "B T"]
    outside: Bool[Tensor, "B T"]
    loss: float
    penalties: Mapping[str, float]
    grad_norm: float
    grad_clipped: bool
    critic: Mapping[str, float] | None  # loss, clip_frac, grad_norm
    on_policy: bool  # the weights are those at the start of the batch: every ratio is 1, unless it has another base
    nonfinite: int  # optimizer steps skipped because loss or gradient was not finite (0 or 1)
    has_clip: bool  # whether the surrogate clips at all
    fresh: Bool[Tensor, "B"] | None = None  # rows that the policy at the start of the batch sampled; None = all
    undisturbed: Float[Tensor, "B T"] | None = None  # old_logp without that noise; None = there is none
