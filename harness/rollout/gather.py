"""One step's rollout batch: sample, admit, refill within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from harness.core.algorithm import Algorithm
from harness.core.parts import GroupView
from harness.core.types import RolloutGroup
from harness.rollout.collect import Collector
from harness.rollout.order import MAIN, REFILL, train_prompts
from harness.rollout.refill import Refill


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The groups to train on, and everything that was sampled for them."""

    groups: list[RolloutGroup]  # admitted, at most the number wanted
    sampled: list[RolloutGroup]  # all, discarded ones included
    rounds: int  # generation batches
    exhausted: bool  # the refill cap was hit first
    refill_cursor: int  # next unused prompt of the refill stream
    t_gen: float  # seconds
    t_reward: float


def gather(
    collector: Collector, algorithm: Algorithm, *, wanted: int, seed: int, rollout: int, refill_cursor: int
) -> Gathered:
    """Generation batches of `wanted` prompts until that many groups are admitted or the refill's rounds are used up.

    The first batch comes from the main prompt stream, refills from a stream of their own, so that one arm's refill
    never shifts another arm's prompts.
    """
    plan = Refill.of(algorithm.admission, wanted)
    admitted: list[RolloutGroup] = []
    sampled: list[RolloutGroup] = []
    t_gen = t_reward = 0.0
    rounds = 0
    while True:
        if rounds == 0:
            prompts = train_prompts(collector.task, seed, MAIN, rollout * wanted, wanted)
        else:
            size = plan.size(len(admitted))
            prompts = train_prompts(collector.task, seed, REFILL, refill_cursor, size)
            refill_cursor += size
        new = collector.collect(prompts, algorithm.siblings, (seed, rollout), [g.prompt for g in sampled])
        t_gen, t_reward = t_gen + new.t_gen, t_reward + new.t_reward
        rounds += 1
        sampled += new.groups
        keep = algorithm.admission(group_view(new.groups)).tolist()
        admitted += [g for g, k in zip(new.groups, keep, strict=True) if k]
        decision = plan.decide(len(admitted), rounds)
        if decision != "more":
            break
    return Gathered(
        groups=admitted[:wanted],
        sampled=sampled,
        rounds=rounds,
        exhausted=decision == "exhausted",
        refill_cursor=refill_cursor,
        t_gen=t_gen,
        t_reward=t_reward,
    )


def group_view(groups: Sequence[RolloutGroup]) -> GroupView:
    """What admission may look at."""
    rows = [t for g in groups for t in g.trajectories]
    return GroupView(
        reward=torch.tensor([t.grade.score for t in rows]),
        correct=torch.tensor([t.grade.correct for t in rows]),
        group=torch.tensor([i for i, g in enumerate(groups) for _ in g.trajectories]),
        num_groups=len(groups),
    )
