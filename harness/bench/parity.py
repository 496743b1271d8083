"""Parity with TRL as a test of the whole loop: rollouts recorded from its GRPOTrainer, replayed through ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from harness import NUMERICS_VERSION
from harness.assemble import Assembly, assemble
from harness.bench.recording import Recording, Rollout
from harness.bench.trl_grpo import Grader, TrlSettings, build_trainer, quiet
from harness.core.algorithm import Algorithm
from harness.core.ports import SingleTurnTask
from harness.core.registry import build_task
from harness.core.shapes import Tensor
from harness.core.spec import BackendSpec, Budget, ModelSpec, Recipe, RunSpec, TaskSpec, UpdateSpec
from harness.core.types import Grade, Prompt, RolloutGroup, Trajectory
from harness.models.recipes import recipe
from harness.rollout.gather import Gathered
from harness.rollout.order import MAIN, train_prompts
from harness.train.loop import Progress, StepOutcome, train
from harness.train.prepare import Prepared
from harness.train.update import Plan

MODEL, TASK, SIBLINGS, MINI_BATCHES = "tiny", "chain", 8, 4
ALGORITHM = "grpo_trl"
OVERRIDES: Mapping[str, Any] = {"penalties.kl": None}  # TRL's beta is 0, the preset's is the paper's
WATCHED = ("trl", "torch", "transformers", "accelerate")


def trl_settings(*, rollouts: int, seed: int) -> TrlSettings:
    """The embedded model's recipe for TRL."""
    known = Recipe.model_validate(recipe(MODEL))
    return TrlSettings.of(known, siblings=SIBLINGS, mini_batches=MINI_BATCHES, rollouts=rollouts, seed=seed)


def prompts_of(settings: TrlSettings) -> list[Prompt]:
    """The prompts of our run at this seed, rollout batch after rollout batch."""
    task, size = build_task(TASK, {}), settings.prompts
    return [p for k in range(settings.rollouts) for p in train_prompts(task, settings.seed, MAIN, k * size, size)]


def record(settings: TrlSettings) -> Recording:
    """Runs TRL's GRPOTrainer and writes down what it does."""
    quiet()
    from harness.bench.trl_listener import Listener
    from harness.models.load import load

    task = build_task(TASK, {})
    assert isinstance(task, SingleTurnTask)
    model = load(ModelSpec(name=MODEL), seed=settings.seed, device="cpu", dtype="float32")
    prompts = prompts_of(settings)
    before = weights(model.policy)
    grader = Grader(task, prompts, model.eos_ids)
    with TemporaryDirectory() as folder:
        trainer = build_trainer(
            settings,
            model=model.policy,
            tokenizer=model.tokenizer,
            prompts=prompts,
            reward=grader,
            folder=folder,
            chat=False,
            kind=Listener,
            grader=grader,
        )
        trainer.train()
    assert isinstance(trainer, Listener)
    return Recording(
        settings=settings,
        rollouts=tuple(trainer.rollouts()),
        before=before,
        after=weights(model.policy),
        grad_norms=tuple(trainer.grad_norms),
        versions={name: version(name) for name in WATCHED},
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every weight by name, tied ones once."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def run_spec(
    settings: TrlSettings, changes: Mapping[str, Any] | None = None, update: UpdateSpec | None = None
) -> RunSpec:
    """The run of ours that a TRL run is compared with; `changes` are overrides of the algorithm or `recipe.` fields."""
    mine = {path.removeprefix("recipe."): v for path, v in (changes or {}).items() if path.startswith("recipe.")}
    theirs = {path: v for path, v in (changes or {}).items() if not path.startswith("recipe.")}
    return RunSpec(
        numerics_version=NUMERICS_VERSION,
        arm="GRPO (TRL)",
        algorithm=ALGORITHM,
        overrides={**OVERRIDES, **theirs},
        task=TaskSpec(name=TASK),
        model=ModelSpec(name=MODEL),
        recipe=Recipe.model_validate({**recipe(MODEL), **mine}),
        budget=Budget(steps=settings.rollouts),
        seed=settings.seed,
        backend=BackendSpec(update=update or UpdateSpec()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Our run on somebody else's rollouts."""

    parts: Assembly
    outcomes: tuple[StepOutcome, ...]
    after: Mapping[str, Tensor]


def replay(recording: Recording, changes: Mapping[str, Any] | None = None, update: UpdateSpec | None = None) -> Replay:
    """Trains with our loop: only the responses and the order of the rows are the recording's."""
    parts = assemble(run_spec(recording.settings, changes, update))
    parts.model.policy.load_state_dict(dict(recording.before), strict=False)

    def gathered(algorithm: Algorithm, current: Recipe, progress: Progress) -> Gathered:
        groups = as_groups(recording.rollouts[progress.step], algorithm.siblings)
        return Gathered(
            groups=groups,
            sampled=groups,
            rounds=1,
            exhausted=False,
            refill_cursor=0,
            t_gen=0.0,
            t_reward=0.0,
            carried=[],
        )

    def planned(prepared: Prepared, algorithm: Algorithm, key: tuple[int, ...]) -> Plan:
        rows = recording.rollouts[key[1]].mini_batches
        return Plan(mini_batches=rows, first_epoch=len(rows))

    trainer = replace(parts.trainer, gather=gathered, plan=planned)
    outcomes = tuple(train(trainer, Progress()))
    return Replay(parts=parts, outcomes=outcomes, after=weights(parts.model.policy))


def as_groups(rollout: Rollout, siblings: int) -> list[RolloutGroup]:
    """Recorded rows as what our collector hands over."""
    rows = [_trajectory(rollout, row, row // siblings, row % siblings) for row in range(len(rollout.reward))]
    return [
        RolloutGroup(prompt=rows[start].prompt, trajectories=tuple(rows[start : start + siblings]))
        for start in range(0, len(rows), siblings)
    ]


def _trajectory(rollout: Rollout, row: int, group: int, sample: int) -> Trajectory:
    ids, reward = rollout.response_ids[row], rollout.reward[row]
    return Trajectory(
        prompt=Prompt(id=f"recorded {group}", messages=(), answer=None),
        sample=sample,
        prompt_ids=rollout.prompt_ids[row],
        response_ids=ids,
        loss_mask=(True,) * len(ids),
        logp=rollout.logp[row],
        entropy=None,
        segments=((len(ids), 0),),
        finish_reason="stop",  # only shaping and exclusions would ask, and this algorithm has none
        text="",
        grade=Grade(score=reward, correct=reward >= 1.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two trained models of one start are apart."""

    of_movement: float  # ||w - v|| / ||v - w_0||, over all weights
    of_weights: float  # ||w - v|| / ||v||
    largest: float  # max |w - v| / max |v|


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Difference:
    """In float64; the names must agree."""
    assert ours.keys() == theirs.keys() == before.keys(), sorted(ours.keys() ^ theirs.keys())
    w, v, start = (_joined(x, sorted(before)) for x in (ours, theirs, before))
    return Difference(
        of_movement=float((w - v).norm() / (v - start).norm()),
        of_weights=float((w - v).norm() / v.norm()),
        largest=float((w - v).abs().max() / v.abs().max()),
    )


def _joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])
