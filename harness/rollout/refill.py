"""The arithmetic of the bounded refill (dynamic sampling): when to generate again, and what to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.core.errors import HarnessError
from harness.core.parts import Admission

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

    @classmethod
    def of(cls, admission: Admission, wanted: int) -> Refill:
        """The plan that an admission part asks for."""
        max_rounds, on_exhausted = admission.refill
        return cls(wanted=wanted, max_rounds=max_rounds, on_exhausted=on_exhausted, replaces=admission.replaces)

    def size(self, num_admitted: int) -> int:
        """Prompts of the next generation batch."""
        return self.wanted - num_admitted if self.replaces else self.wanted

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

    kept: tuple[int, ...]  # admitted prompts in order, cut to the number wanted; the surplus is thrown away
    rounds: int  # generation batches used
    exhausted: bool  # fewer prompts than wanted


def refill(admitted: Sequence[Sequence[int]], plan: Refill) -> Refilled:
    """Replays a refill over the admitted prompt ids of each generation batch, in the order of generation.

    Source: DAPO's recipe, `dapo_ray_trainer.fit`. A sequence that ends early counts as used up.
    """
    pool: list[int] = []
    decision: Decision = "more"
    rounds = 0
    while decision == "more" and rounds < len(admitted):
        pool.extend(admitted[rounds])
        rounds += 1
        decision = plan.decide(len(pool), rounds)
    return Refilled(kept=tuple(pool[: plan.wanted]), rounds=rounds, exhausted=decision != "enough")
