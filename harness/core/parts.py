"""The slots of an algorithm: one abstract class per decision on which the papers disagree.

A part is a final frozen model. Its fields are its hyper-parameters, its `__call__` is the mathematics:
a pure function over tensors. `kind` names it inside its slot; `harness list parts` shows all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, SerializeAsAny, model_serializer

from harness.core.expect import expect_shape, expect_tokens
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import BatchTotals, StepCredit

Need = Literal[
    "critic", "reference", "graded_reward", "credit", "entropy", "components", "turns", "verdict", "values_past_end"
]


class Part(BaseModel, ABC):
    """Base of all parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slot: ClassVar[str]
    kind: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """What the backbone must provide for this part."""
        return frozenset()

    @property
    def component_names(self) -> tuple[str, ...]:
        """Components of the task's reward that the part asks for by name."""
        return ()

    @model_serializer(mode="wrap")
    def _with_kind(self, handler: Any) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """What an admission rule may look at, one entry per row."""

    reward: Float[Tensor, "B"]
    correct: Bool[Tensor, "B"]
    group: Int[Tensor, "B"]
    num_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """What reward shaping and selection may look at, one entry per row."""

    reward: Float[Tensor, "B"]  # the task reward; already shaped where the slot comes later
    correct: Bool[Tensor, "B"]
    length: Int[Tensor, "B"]  # n_i, response tokens, EOS included
    group: Int[Tensor, "B"]
    num_groups: int
    limit: int  # hard generation limit, tokens
    reward_range: tuple[float, float]  # of the task
    uniform: Float[Tensor, "B"]  # one counter-based uniform per row, for parts that draw
    components: Mapping[str, Float[Tensor, "B"]] = field(default_factory=dict)  # named parts of the task's reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Rows kept for the gradient, and the selector's state after this batch."""

    kept: Bool[Tensor, "B"]
    history: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionView:
    """What an exclusion may look at, one entry per row."""

    kept: Bool[Tensor, "B"]  # by the selection slot
    truncated: Bool[Tensor, "B"]  # cut at the generation limit


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageInput:
    """What an advantage estimator may look at."""

    reward: Float[Tensor, "B"]  # shaped outcome reward
    mask: Bool[Tensor, "B T"]
    group: Int[Tensor, "B"]
    num_groups: int
    kept: Bool[Tensor, "B"]  # by the selection slot; advantages of the others are 0
    correct: Bool[Tensor, "B"] | None = None  # the task's verdict, for estimators that read nothing else
    token_reward: Float[Tensor, "B T"] | None = None  # KL in reward and the like, added per token
    values: Float[Tensor, "B T"] | None = None  # critic's values under the behaviour-time critic
    credit: StepCredit | None = None  # process rewards
    components: Mapping[str, Float[Tensor, "B"]] | None = None  # named parts of the task's reward; NaN = abstains
    turns: StepCredit | None = None  # what each turn earned; None where a response is one turn

    def __post_init__(self) -> None:
        """A row whose reward is not finite abstains: it counts as not kept, so its advantage is 0 (TRL).

        So does a component that is not finite (it becomes NaN), and a process reward or a turn's (it is left out).
        """
        expect_tokens("AdvantageInput", self.mask, token_reward=self.token_reward, values=self.values)
        rows = (len(self.mask),)
        expect_shape("AdvantageInput", rows, "one entry per row", reward=self.reward, group=self.group, kept=self.kept,
                     correct=self.correct, **(self.components or {}))  # fmt: skip
        known = self.reward.isfinite()
        object.__setattr__(self, "kept", self.kept & known)
        object.__setattr__(self, "reward", torch.where(known, self.reward, 0.0))
        if self.components:
            finite = {name: torch.where(x.isfinite(), x, torch.nan) for name, x in self.components.items()}
            object.__setattr__(self, "components", finite)
        for name, c in (("credit", self.credit), ("turns", self.turns)):
            if c is not None:
                use = c.reward.isfinite()
                object.__setattr__(self, name, StepCredit(row=c.row[use], end=c.end[use], reward=c.reward[use]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Advantages of a rollout batch, 0 at masked positions; constants for the gradient."""

    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None = None  # the critic's targets


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateOutput:
    """Per-token loss and which bound was active where."""

    loss: Float[Tensor, "B T"]
    low: Bool[Tensor, "B T"]
    high: Bool[Tensor, "B T"]
    dual: Bool[Tensor, "B T"]
    outside: Bool[Tensor, "B T"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyInput:
    """What a per-token penalty may look at."""

    logp: Float[Tensor, "B T"]
    old_logp: Float[Tensor, "B T"]
    ref_logp: Float[Tensor, "B T"] | None
    entropy: Float[Tensor, "B T"] | None  # of the current policy, with gradient
    mask: Bool[Tensor, "B T"]


class Admission(Part):
    """Which groups enter the batch (dynamic sampling); refused groups are replaced by a bounded refill."""

    slot: ClassVar[str] = "admission"

    @property
    def refill(self) -> tuple[int, Literal["train", "raise"]]:
        """Generation batches allowed per step (0 = no limit), and what happens when they are used up."""
        return 1, "train"

    @property
    def replaces(self) -> bool:
        """True where a refill generates one new prompt per refused group instead of a whole batch."""
        return False

    @property
    def carries(self) -> bool:
        """True where groups admitted beyond the number wanted are kept for the next batch instead of dropped."""
        return False

    @abstractmethod
    def __call__(self, view: GroupView) -> Bool[Tensor, "N"]: ...


class Selection(Part):
    """Which rows of an admitted group carry an advantage (GFPO)."""

    slot: ClassVar[str] = "selection"

    @property
    def state(self) -> str | None:
        """What its history holds; None where it keeps none. Parts of the same state understand each other's history."""
        return None

    @abstractmethod
    def __call__(self, view: RowView, history: tuple[float, ...]) -> Selected: ...


class Exclusion(Part):
    """Rows that leave the loss altogether: their mask becomes 0, their reward stays in the group's statistics."""

    slot: ClassVar[str] = "exclusions"
    counted: ClassVar[bool] = True  # the row still counts as one (empty) response in B

    @abstractmethod
    def __call__(self, view: ExclusionView) -> Bool[Tensor, "B"]:
        """True for the rows that leave."""


class Reward(Part):
    """Shaping: returns the new row reward."""

    slot: ClassVar[str] = "rewards"

    @abstractmethod
    def __call__(self, view: RowView) -> Float[Tensor, "B"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticPlan:
    """How an advantage estimator wants its critic trained."""

    value_clip: float | None  # box around the old values; None = off
    warmup_steps: int  # first rollout steps that train the critic with the actor frozen


class Advantage(Part):
    """Rewards -> advantages `[B, T]`."""

    slot: ClassVar[str] = "advantage"
    group_relative: ClassVar[bool] = True  # needs at least two siblings
    per_token: ClassVar[bool] = False  # advantages may differ between the tokens of one row
    reads_token_reward: ClassVar[bool] = False  # penalties in the reward reach it

    @property
    def critic(self) -> CriticPlan | None:
        """How the critic is trained, for estimators that have one."""
        return None

    @abstractmethod
    def __call__(self, view: AdvantageInput) -> Advantages: ...


class Ratio(Part):
    """Importance ratio `[B, T]` of policy to old policy, with the derivative the algorithm defines."""

    slot: ClassVar[str] = "ratio"

    @property
    def per_token(self) -> bool:
        """Whether every token has a ratio of its own, whose noise no average over the row damps."""
        return False

    @abstractmethod
    def __call__(
        self, logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]: ...


class Correction(Part):
    """Detached weight of each token's loss for the gap between the behaviour policy and the old policy."""

    slot: ClassVar[str] = "correction"

    @property
    def active(self) -> bool:
        """False where every weight is 1, so that nothing is computed."""
        return True

    @abstractmethod
    def __call__(
        self, old_logp: Float[Tensor, "B T"], behaviour_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]: ...


class Surrogate(Part):
    """Per-token loss from ratio and advantage (`logp` for surrogates that use the score directly)."""

    slot: ClassVar[str] = "surrogate"
    clips: ClassVar[bool] = True  # False where clip fractions do not apply

    @property
    def needs_calibration(self) -> bool:
        """True where the clip range is still to be measured before training."""
        return False

    def calibrated(self, sd: float) -> Surrogate:
        """The same part with a range measured from `sd`, the standard deviation of log s over rows."""
        return self

    def unclipped(self) -> Surrogate:
        """The same part without any bound, for the measurement."""
        return self

    @abstractmethod
    def __call__(
        self, ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], logp: Float[Tensor, "B T"]
    ) -> SurrogateOutput: ...


class Aggregate(Part):
    """Per-token loss -> scalar. Denominators come from `BatchTotals`, so micro-batches add up exactly."""

    slot: ClassVar[str] = "aggregate"

    @property
    def per_micro_batch(self) -> bool:
        """True where the denominator is the micro-batch's own, so that every row has to be in one."""
        return False

    @abstractmethod
    def __call__(
        self, loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], totals: BatchTotals
    ) -> Float[Tensor, ""]: ...


class Penalty(Part):
    """A per-token term added to the loss (`place="loss"`) or taken from the reward (`place="reward"`).

    Its weight is a field (`coef`). In the loss it is averaged by `aggregate`, or like the policy term where that is
    None; taken from the reward, it is never averaged.
    """

    slot: ClassVar[str] = "penalties"
    aggregate: SerializeAsAny[Aggregate] | None = None

    @property
    @abstractmethod
    def weight(self) -> float:
        """Coefficient of the term in the loss (or in the reward)."""

    @property
    def in_reward(self) -> bool:
        """True where the term is taken from the per-token reward instead of added to the loss."""
        return False

    @property
    def adaptive(self) -> bool:
        """True where the weight follows the measured value from batch to batch."""
        return False

    def next_weight(self, value: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> float | None:
        """The weight of the next rollout batch, given this one's values; None where the weight is fixed."""
        return None

    def with_weight(self, weight: float) -> Penalty:
        """The same part with the weight of an adaptive controller."""
        return self

    @abstractmethod
    def __call__(self, view: PenaltyInput) -> Float[Tensor, "B T"]: ...


class Updates(BaseModel):
    """How often a rollout batch is used: `mini_batches` optimizer steps per epoch, `epochs` passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mini_batches: int = 4
    epochs: int = 1
