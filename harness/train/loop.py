"""The training loop: yields one outcome per rollout batch and knows neither files nor trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from harness.core.algorithm import Algorithm
from harness.core.resolve import scheduled
from harness.core.routes import ProbeSeen
from harness.core.shapes import Tensor
from harness.core.spec import Budget, Recipe, ScheduleEntry
from harness.core.types import RolloutBatch, RolloutGroup, UpdateTrace
from harness.train.networks import Networks
from harness.train.optimizer import learning_rate
from harness.train.prepare import Prepared, TaskFacts, prepare
from harness.train.probe import RouteProbe, compared
from harness.train.update import Optimizers, Plan, Rates, old_logps, plan_updates, update

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
    carried: tuple[RolloutGroup, ...] = ()  # admitted beyond the last batch, for the next
    history: tuple[float, ...] = ()  # state of the selection
    history_of: str | None = None  # what it holds; a selection that keeps another state begins anew
    penalty_weight: float | None = None  # state of an adaptive penalty; None = the record's own
    wallclock_s: float = 0.0


class Batch(Protocol):
    """What the rollout stage hands over."""

    @property
    def groups(self) -> list[RolloutGroup]: ...
    @property
    def carried(self) -> list[RolloutGroup]: ...
    @property
    def sampled(self) -> list[RolloutGroup]: ...
    @property
    def rounds(self) -> int: ...
    @property
    def exhausted(self) -> bool: ...
    @property
    def refill_cursor(self) -> int: ...
    @property
    def t_gen(self) -> float: ...
    @property
    def t_reward(self) -> float: ...


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
    plan: Callable[[Prepared, Algorithm, tuple[int, ...]], Plan] = plan_updates  # rows of each optimizer step
    probe: RouteProbe | None = None  # of a mixture of experts


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One rollout batch and its updates: the raw material of a row of steps.jsonl."""

    progress: Progress
    gathered: Batch
    prepared: Prepared | None  # None where no group was admitted
    old_logp: Tensor | None
    traces: Sequence[UpdateTrace]
    critic_skipped: int | None  # the critic's optimizer steps without finite numbers; None where there is no critic
    fraction: float  # of the budget, at the start of the step
    lr: float
    actor_frozen: bool
    moved: tuple[float, float] | None  # (||theta' - theta||, ||theta||) over the step, where measured
    history: Mapping[str, tuple[float, ...]]  # what the selection knew before this batch, by the name of its state
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    probe: ProbeSeen | None = None  # around the first optimizer step


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
    if progress.penalty_weight is not None:
        penalties = tuple(p.with_weight(progress.penalty_weight) for p in algorithm.penalties)
        algorithm = algorithm.model_copy(update={"penalties": penalties})
    plan = algorithm.advantage.critic
    frozen = plan is not None and progress.step < plan.warmup_steps
    trainer.optimizers.policy.mark()
    gathered = trainer.gather(algorithm, recipe, progress)
    seconds = {"gen": gathered.t_gen, "reward": gathered.t_reward, "collect": trainer.clock() - start}
    rates = Rates(
        policy=learning_rate(recipe, recipe.lr, fraction), critic=learning_rate(recipe, recipe.critic_lr, fraction)
    )
    state = algorithm.selection.state
    progress = _remembering(progress, state)
    trained = (
        _train_on(trainer, algorithm, recipe, progress, gathered, rates, frozen) if gathered.groups else _Trained()
    )
    new = replace(
        progress,
        step=progress.step + 1,
        optimizer_steps=progress.optimizer_steps + sum(1 - trace.nonfinite for trace in trained.traces),
        sampled_tokens=progress.sampled_tokens + count_tokens(gathered.sampled),
        trained_tokens=progress.trained_tokens + trained.tokens,
        prompts=progress.prompts + len(gathered.sampled),
        refill_cursor=gathered.refill_cursor,
        carried=tuple(gathered.carried),
        history=trained.prepared.history if trained.prepared is not None else progress.history,
        penalty_weight=progress.penalty_weight if trained.prepared is None else trained.prepared.penalty_weight,
        wallclock_s=progress.wallclock_s + trainer.clock() - start,
    )
    trainer.sync(new.optimizer_steps)
    return StepOutcome(
        progress=new,
        gathered=gathered,
        prepared=trained.prepared,
        old_logp=trained.old_logp,
        traces=trained.traces,
        critic_skipped=None if trainer.nets.critic is None else trained.critic_skipped,
        fraction=fraction,
        lr=rates.policy,
        actor_frozen=frozen,
        moved=trainer.optimizers.policy.moved(),
        history={} if state is None else {state: progress.history},
        seconds={**seconds, **trained.seconds},
        probe=trained.probe,
    )


def _remembering(progress: Progress, state: str | None) -> Progress:
    """Progress with a history that the selection understands: an empty one where another kind of it was kept."""
    if state is None or state == progress.history_of:
        return progress
    return replace(progress, history=(), history_of=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    prepared: Prepared | None = None
    old_logp: Tensor | None = None
    traces: Sequence[UpdateTrace] = ()
    critic_skipped: int = 0
    tokens: int = 0  # in the backward passes
    probe: ProbeSeen | None = None
    seconds: Mapping[str, float] = field(default_factory=lambda: {"prepare": 0.0, "logp": 0.0, "update": 0.0})


def _train_on(
    trainer: Trainer,
    algorithm: Algorithm,
    recipe: Recipe,
    progress: Progress,
    gathered: Batch,
    rates: Rates,
    frozen: bool,
) -> _Trained:
    """Advantages, old log-probs, optimizer steps."""
    start = trainer.clock()
    nets = replace(trainer.nets, temperature=recipe.temperature, micro_batch_tokens=recipe.micro_batch_tokens)
    facts = replace(trainer.facts, limit=recipe.max_new_tokens * trainer.facts.max_turns)
    key = (trainer.seed, progress.step)
    prepared = prepare(trainer.collate(gathered.groups), algorithm, nets, facts, key, progress.history)
    ready = trainer.clock()
    plan = trainer.plan(prepared, algorithm, (*key, SHUFFLE))
    if frozen:
        old = torch.zeros(prepared.batch.mask.shape, device=prepared.batch.mask.device)  # nothing will read it
    else:
        old = old_logps(prepared, plan, algorithm, nets).clone()
    logged = trainer.clock()
    probe, policy = trainer.probe, nets.policy
    before = None if probe is None or frozen else probe.look(policy)
    seen: ProbeSeen | None = None
    steps = []
    for done in update(
        prepared, algorithm, nets, trainer.optimizers, rates, old, plan, actor_frozen=frozen, width=facts.limit
    ):
        steps.append(done)
        if probe is not None and before is not None and seen is None and done.policy is not None:
            seen = compared(probe, before, probe.look(policy))
    traces = [done.policy for done in steps if done.policy is not None]
    return _Trained(
        prepared=prepared,
        old_logp=None if frozen else old,
        traces=traces,
        critic_skipped=sum(done.critic is not None and not done.critic.finite for done in steps),
        tokens=sum(int(trace.mask.sum()) for trace in traces),
        probe=seen,
        seconds={"prepare": ready - start, "logp": logged - ready, "update": trainer.clock() - logged},
    )


def count_tokens(groups: Sequence[RolloutGroup]) -> int:
    """Tokens the policy produced."""
    return sum(t.num_tokens for g in groups for t in g.trajectories)
