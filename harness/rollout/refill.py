"""The arithmetic of the bounded refill (dynamic sampling): when to generate again, and what to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from harness.core.errors import HarnessError
from harness.core.parts import Admission

T = TypeVar("T")
Decision = Literal["more", "enough", "exhausted"]


class RefillExhausted(HarnessError):
    """The generation batches allowed for one step did not yield enough prompts with a mixed outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """What one step wants and may spend."""

    wanted: int  # prompts to train on
    max_rounds: int  # generation batches allowed; 0 = no limit
    on_exhausted: Literal["train", "raise"]
    replaces: bool = False  # a refill generates the missing prompts only, else a whole batch
    carries: bool = False  # the surplus begins the next batch, else it is dropped

    @classmethod
    def of(cls, admission: Admission, wanted: int) -> Refill:
        """The plan that an admission part asks for."""
        max_rounds, on_exhausted = admission.refill
        return cls(
            wanted=wanted,
            max_rounds=max_rounds,
            on_exhausted=on_exhausted,
            replaces=admission.replaces,
            carries=admission.carries,
        )

    def size(self, num_admitted: int) -> int:
        """Prompts of the next generation batch."""
        return self.wanted - num_admitted if self.replaces else self.wanted

    def begin(self, carried: Sequence[T]) -> list[T]:
        """What the batch begins with, before anything is generated; nothing where the plan does not carry."""
        return list(carried) if self.carries else []

    def split(self, admitted: Sequence[T]) -> tuple[list[T], list[T]]:
        """The batch in order of admission, and what the next one begins with."""
        return list(admitted[: self.wanted]), self.begin(admitted[self.wanted :])

    def decide(self, num_admitted: int, rounds: int) -> Decision:
        """Whether to generate another batch, after `rounds` of them admitted `num_admitted` prompts in all.

        Raises RefillExhausted where the rounds are used up and the plan says so.
        """
        if num_admitted >= self.wanted:
            return "enough"
        if not self.max_rounds or rounds < self.max_rounds:
            return "more"
        if self.on_exhausted == "raise":
            raise RefillExhausted(
                f"{num_admitted} of {self.wanted} prompts were admitted after {rounds} generation batches\n"
                "  why:     almost every group is all correct or all wrong, so the data is too easy or too hard\n"
                "  instead: admission.on_exhausted=train, a larger admission.max_rounds, or other prompts"
            )
        return "exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refilled:
    """The outcome of a refill."""

    kept: tuple[int, ...]  # admitted prompts in order, cut to the number wanted
    rounds: int  # generation batches used
    exhausted: bool  # fewer prompts than wanted
    carried: tuple[int, ...] = ()  # the surplus, where the plan carries it


def refill(admitted: Sequence[Sequence[int]], plan: Refill, carried: Sequence[int] = ()) -> Refilled:
    """Replays a refill over the admitted prompt ids of each generation batch, in the order of generation.

    `carried` is the surplus of the step before. Source: DAPO's recipe, `dapo_ray_trainer.fit`, which carries nothing.
    A sequence that ends early counts as used up.
    """
    pool, rounds = plan.begin(carried), 0
    decision = plan.decide(len(pool), rounds)
    while decision == "more" and rounds < len(admitted):
        pool.extend(admitted[rounds])
        rounds += 1
        decision = plan.decide(len(pool), rounds)
    kept, surplus = plan.split(pool)
    return Refilled(kept=tuple(kept), rounds=rounds, exhausted=decision != "enough", carried=tuple(surplus))
