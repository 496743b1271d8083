"""One step's rollout batch: sample, admit, refill within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from harness.core.algorithm import Algorithm
from harness.core.parts import GroupView
from harness.core.spec import PromptOrder
from harness.core.types import Prompt, RolloutGroup
from harness.rollout.collect import Collector
from harness.rollout.order import MAIN, REFILL, pool_prompts, train_prompts
from harness.rollout.refill import Refill


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The groups to train on, and everything that was sampled for them."""

    groups: list[RolloutGroup]  # admitted, at most the number wanted; those carried over from an earlier step first
    carried: list[RolloutGroup]  # admitted beyond that, for the next step
    sampled: list[RolloutGroup]  # in this step, discarded ones included
    rounds: int  # generation batches
    exhausted: bool  # the refill cap was hit first
    refill_cursor: int  # next unused prompt of the refill stream
    t_gen: float  # seconds
    t_reward: float


def gather(
    collector: Collector,
    algorithm: Algorithm,
    *,
    wanted: int,
    seed: int,
    rollout: int,
    refill_cursor: int,
    carried: Sequence[RolloutGroup] = (),
    order: PromptOrder | None = None,
    pool: tuple[int, int] | None = None,
) -> Gathered:
    """Generation batches of `wanted` prompts until that many groups are admitted or the refill's rounds are used up.

    The first batch comes from the main prompt stream, refills from a stream of their own, so that one arm's refill
    never shifts another arm's prompts. `carried` is the surplus of the step before; `order` names other prompts than
    those of the seed, in both streams. `pool` = (size, number) restricts both to some of them.
    """
    order = order or PromptOrder(seed=seed)

    def prompts_of(stream: int, first: int, count: int) -> list[Prompt]:
        if pool is None:
            return train_prompts(collector.task, order.seed, stream, first, count)
        return pool_prompts(collector.task, order.seed, stream, first, count, *pool)

    plan = Refill.of(algorithm.admission, wanted)
    admitted = plan.begin(carried)
    sampled: list[RolloutGroup] = []
    t_gen = t_reward = 0.0
    rounds = 0
    while (decision := plan.decide(len(admitted), rounds)) == "more":
        if rounds == 0:
            prompts = prompts_of(MAIN, order.first + rollout * wanted, wanted)
        else:
            size = plan.size(len(admitted))
            prompts = prompts_of(REFILL, order.first + refill_cursor, size)
            refill_cursor += size
        new = collector.collect(prompts, algorithm.siblings, (seed, rollout), [g.prompt for g in sampled])
        t_gen, t_reward = t_gen + new.t_gen, t_reward + new.t_reward
        rounds += 1
        sampled += new.groups
        keep = algorithm.admission(group_view(new.groups)).tolist()
        admitted += [g for g, k in zip(new.groups, keep, strict=True) if k]
    groups, surplus = plan.split(admitted)
    return Gathered(
        groups=groups,
        carried=[_settled(g) for g in surplus],
        sampled=sampled,
        rounds=rounds,
        exhausted=decision == "exhausted",
        refill_cursor=refill_cursor,
        t_gen=t_gen,
        t_reward=t_reward,
    )


def _settled(group: RolloutGroup) -> RolloutGroup:
    """The group without its prompt's answer, which only the grader reads: all that a checkpoint has to keep."""
    prompt = replace(group.prompt, answer=None)
    return RolloutGroup(prompt=prompt, trajectories=tuple(replace(t, prompt=prompt) for t in group.trajectories))


def group_view(groups: Sequence[RolloutGroup]) -> GroupView:
    """What admission may look at."""
    rows = [t for g in groups for t in g.trajectories]
    return GroupView(
        reward=torch.tensor([t.grade.score for t in rows]),
        correct=torch.tensor([t.grade.correct for t in rows]),
        group=torch.tensor([i for i, g in enumerate(groups) for _ in g.trajectories]),
        num_groups=len(groups),
    )
