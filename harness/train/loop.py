"""The training loop: yields one outcome per rollout batch and knows neither files nor trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.core.algorithm import Algorithm
from harness.core.resolve import scheduled
from harness.core.shapes import Tensor
from harness.core.spec import Budget, Recipe, ScheduleEntry
from harness.core.types import RolloutBatch, RolloutGroup, UpdateTrace
from harness.train.networks import Networks
from harness.train.optimizer import learning_rate
from harness.train.prepare import Prepared, TaskFacts, prepare
from harness.train.update import Optimizers, Rates, old_logps, plan_updates, update

SHUFFLE = 11  # stream of the mini-batch order


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Counters of a run; with the weights, all that resuming needs."""

    step: int = 0  # rollout batches done
    optimizer_steps: int = 0
    sampled_tokens: int = 0  # discarded responses included
    trained_tokens: int = 0  # tokens with a weight in a backward pass
    prompts: int = 0
    refill_cursor: int = 0
    history: tuple[float, ...] = ()  # state of the selection
    wallclock_s: float = 0.0


class Batch(Protocol):
    """What the rollout stage hands over."""

    groups: list[RolloutGroup]
    sampled: list[RolloutGroup]
    rounds: int
    exhausted: bool
    refill_cursor: int
    t_gen: float
    t_reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Everything that stays the same during a run."""

    algorithm: Algorithm
    recipe: Recipe
    budget: Budget
    schedule: tuple[ScheduleEntry, ...]
    seed: int
    nets: Networks
    optimizers: Optimizers
    facts: TaskFacts
    gather: Callable[[Algorithm, Recipe, Progress], Batch]
    collate: Callable[[Sequence[RolloutGroup]], RolloutBatch]
    sync: Callable[[int], None]  # weights -> sampler, stamped with a policy version
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One rollout batch and its updates: the raw material of a row of steps.jsonl."""

    progress: Progress
    gathered: Batch
    prepared: Prepared | None  # None where no group was admitted
    old_logp: Tensor | None
    traces: Sequence[UpdateTrace]
    fraction: float  # of the budget, at the start of the step
    lr: float
    actor_frozen: bool
    moved: tuple[float, float] | None  # (||theta' - theta||, ||theta||) over the step, where measured
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase


def train(trainer: Trainer, progress: Progress) -> Iterator[StepOutcome]:
    """Steps until the budget is spent; the consumer may stop between any two."""
    while True:
        fraction = trainer.budget.fraction(progress.sampled_tokens, progress.step)
        if fraction >= 1.0:
            return
        outcome = one_step(trainer, progress, fraction)
        progress = outcome.progress
        yield outcome


def one_step(trainer: Trainer, progress: Progress, fraction: float) -> StepOutcome:
    """Gather, prepare, update, sync."""
    start = trainer.clock()
    algorithm, recipe = scheduled(trainer.algorithm, trainer.recipe, trainer.schedule, fraction)
    nets = replace(trainer.nets, temperature=recipe.temperature, micro_batch_tokens=recipe.micro_batch_tokens)
    facts = replace(trainer.facts, limit=recipe.max_new_tokens)
    key = (trainer.seed, progress.step)
    trainer.optimizers.policy.mark()
    gathered = trainer.gather(algorithm, recipe, progress)
    collected = trainer.clock()
    critic_plan = algorithm.advantage.critic
    frozen = critic_plan is not None and progress.step < critic_plan.warmup_steps
    rates = Rates(
        policy=learning_rate(recipe, recipe.lr, fraction), critic=learning_rate(recipe, recipe.critic_lr, fraction)
    )
    prepared, old, traces, trained = None, None, [], 0
    ready = logged = trainer.clock()
    if gathered.groups:
        prepared = prepare(trainer.collate(gathered.groups), algorithm, nets, facts, key, progress.history)
        ready = trainer.clock()
        plan = plan_updates(prepared, algorithm, (*key, SHUFFLE))
        old = old_logps(prepared, plan, algorithm, nets)
        logged = trainer.clock()
        old = old.clone()
        steps = update(
            prepared,
            algorithm,
            nets,
            trainer.optimizers,
            rates,
            old,
            plan,
            actor_frozen=frozen,
            width=recipe.max_new_tokens,
        )
        traces = [trace for trace in steps if trace is not None]
        trained = sum(int(trace.mask.sum()) for trace in traces)
    updated = trainer.clock()
    new = replace(
        progress,
        step=progress.step + 1,
        optimizer_steps=progress.optimizer_steps + len(traces),
        sampled_tokens=progress.sampled_tokens + count_tokens(gathered.sampled),
        trained_tokens=progress.trained_tokens + trained,
        prompts=progress.prompts + len(gathered.sampled),
        refill_cursor=gathered.refill_cursor,
        history=prepared.history if prepared is not None else progress.history,
        wallclock_s=progress.wallclock_s + updated - start,
    )
    trainer.sync(new.optimizer_steps)
    return StepOutcome(
        progress=new,
        gathered=gathered,
        prepared=prepared,
        old_logp=old,
        traces=traces,
        fraction=fraction,
        lr=rates.policy,
        actor_frozen=frozen,
        moved=trainer.optimizers.policy.moved(),
        seconds={
            "gen": gathered.t_gen,
            "reward": gathered.t_reward,
            "collect": collected - start,
            "prepare": ready - collected,
            "logp": logged - ready,
            "update": updated - logged,
        },
    )


def count_tokens(groups: Sequence[RolloutGroup]) -> int:
    """Tokens the policy produced."""
    return sum(sum(t.loss_mask) for g in groups for t in g.trajectories)
