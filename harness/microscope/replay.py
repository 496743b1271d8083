"""From a run folder to the microscope's record: model, weights some optimizer steps on, every arm's view of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from algorithms.arms import arm_overrides, equivalent_to
from algorithms.checks import range_warning
from harness.core.algorithm import Algorithm
from harness.core.checkpoints import find
from harness.core.errors import UsageError
from harness.core.microscope import Microscope, Weights
from harness.core.registry import build_task
from harness.core.resolve import resolve_algorithm
from harness.core.results import CHECKPOINTS, RunFolder, read_run
from harness.core.shapes import Bool, Float, Tensor
from harness.core.spec import Recipe, Roster
from harness.microscope.describe import Showing, describe, full_tensors
from harness.microscope.lens import Arm, focus, look
from harness.microscope.recorded import RecordedRollout, read_rollout, recorded_steps
from harness.microscope.statistics import quantiles
from harness.study.arms import apply_changes, build_arm, display_name
from harness.train import checkpoint
from harness.train.loop import SHUFFLE, Progress
from harness.train.networks import Networks, Rows, as_rows, no_grad_logps
from harness.train.objective import log_sequence_ratio_sd
from harness.train.optimizer import Optimizer
from harness.train.prepare import TaskFacts
from harness.train.update import Optimizers, Rates, plan_updates, update

if TYPE_CHECKING:
    from harness.models.load import LoadedModel

DEFAULT_ARMS = ("grpo", "ppo", "dapo", "gspo", "gspo_calibrated", "gspo_token", "gfpo")
WITH_CREDIT = ("gspo_token_process",)  # added where the batch has process rewards
PASS_ARM = "grpo"  # whose update pass moves the weights
FAR_NATS = 0.02  # mean |logp - behaviour logp| beyond which the start weights cannot be those that sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    folder: Path
    step: int | None = None  # None: the first that is kept, or with `at_checkpoint` the last before the checkpoint
    arms: tuple[str, ...] | None = None
    roster: Roster = "matched"
    changes: Mapping[str, Any] = field(default_factory=dict)  # as `--set` of compare
    at_checkpoint: bool = False  # the run's newest checkpoint, instead of an update pass from its initial weights
    showing: Showing = field(default_factory=Showing)


def fixture_folder() -> Path:
    """The bundled run folder: 8 prompts x 16 responses of the embedded model's cold start."""
    return Path(str(resources.files("harness.microscope") / "fixture"))


def replay(request: Request) -> tuple[Microscope, dict[str, Tensor]]:
    """The record and the full per-token tensors."""
    run = read_run(request.folder)
    spec = run.spec
    newest = _newest_checkpoint(request.folder) if request.at_checkpoint else None
    steps = recorded_steps(request.folder)
    step = request.step if request.step is not None else _default_step(tuple(steps), newest)
    device = spec.backend.device if torch.cuda.is_available() else "cpu"
    rollout = read_rollout(request.folder, step, spec.recipe.max_new_tokens, device)
    notes: list[str] = []
    records = _records(request, rollout, spec.recipe, notes)
    stage = _Stage(run, rollout, records, device, notes)
    weights = stage.move_to_checkpoint(newest) if newest is not None else stage.move_by_pass()
    arms = stage.calibrated(list(stage.arms.values()), weights.sd_log_s)
    sights = look(arms, stage.nets, stage.rows, stage.old, width=spec.recipe.max_new_tokens)
    record = describe(
        sights,
        spec=spec,
        run=request.folder.name,
        roster=request.roster,
        recorded_steps=tuple(steps),
        rollout=rollout,
        weights=weights,
        token_ratio=stage.token_ratio(),
        model=stage.model,
        showing=request.showing,
        notes=stage.notes,
        identical={a.name: _equal_to(a.algorithm) for a in arms},
    )
    return record, full_tensors(sights, stage.token_ratio())


def _equal_to(algorithm: Algorithm) -> str | None:
    """The arm, as it is shown, that a record equals by mathematics."""
    name = equivalent_to(algorithm)
    return display_name(name) if name is not None and name != algorithm.name else None


def _records(request: Request, rollout: RecordedRollout, recipe: Recipe, notes: list[str]) -> dict[str, Algorithm]:
    """Arm name -> algorithm, with changes; what building one warns of becomes a note."""
    names = request.arms or (*DEFAULT_ARMS, *(WITH_CREDIT if rollout.batch.credit is not None else ()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        specs = tuple(build_arm(name, request.roster, several_rosters=False) for name in names)
        titles = [s.name for s in specs]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise UsageError(
                f"arms named {', '.join(twice)} more than once", "rows could not be told apart", "once each"
            )
        specs = apply_changes(specs, request.changes, recipe) if request.changes else specs
        found = {s.name: resolve_algorithm(s.algorithm, s.overrides, recipe) for s in specs}
    for name, algorithm in found.items():
        if "values_past_end" in algorithm.needs:
            raise UsageError(
                f"{name} under the microscope",
                "it needs a critic's value one position past the last token, which no rollout file holds",
                "ppo, or leave it out",
            )
    notes += dict.fromkeys(f"{w.message}." for w in caught if issubclass(w.category, UserWarning))
    replaying = [name for name, algorithm in found.items() if algorithm.routing_replay in ("r2", "r3")]
    if replaying:
        notes.append(
            f"{', '.join(replaying)}: seen with free routes; a rollout file holds none that could be replayed."
        )
    return {name: a.model_copy(update={"routing_replay": "off"}) for name, a in found.items()}


def _newest_checkpoint(folder: Path) -> Path:
    found = checkpoint.steps(folder / CHECKPOINTS)
    if not found:
        raise UsageError(
            f"{folder}: --checkpoint", "this run folder has no checkpoint", "leave --checkpoint out: initial weights"
        )
    return found[-1]


def _default_step(steps: tuple[int, ...], newest: Path | None) -> int:
    if newest is None:
        return steps[0]
    return max((s for s in steps if s <= int(newest.name)), default=steps[0])


class _Stage:
    """Model, networks and the arms' views, made at the start weights; then the weights move."""

    def __init__(
        self,
        run: RunFolder,
        rollout: RecordedRollout,
        records: Mapping[str, Algorithm],
        device: str,
        notes: list[str],
    ) -> None:
        from harness.models.float_head import use_float32_head
        from harness.models.load import load
        from harness.models.response_logits import token_logps

        self.spec, self.rollout, self.notes, self.run = run.spec, rollout, notes, run
        spec, recipe = self.spec, self.spec.recipe

        def loaded() -> LoadedModel:
            found = load(spec.model, seed=spec.seed, device=device, dtype=spec.backend.dtype)
            if spec.backend.fp32_head:
                use_float32_head(found.policy)
            return found

        self.model = loaded()
        needs_reference = any("reference" in a.needs for a in records.values())
        self.nets = Networks(
            policy=self.model.policy,
            token_logps=token_logps,
            temperature=recipe.temperature,
            micro_batch_tokens=recipe.micro_batch_tokens,
            pad_id=self.model.pad_id,
            reference=loaded().policy.requires_grad_(False) if needs_reference else None,
        )
        self.optimizer = Optimizer(self.model.policy, recipe, recipe.lr)
        self.histories = dict(rollout.histories)
        self.start_text = self._start_weights()
        self.rows: Rows = as_rows(rollout.batch, self.model.pad_id)
        start = no_grad_logps(self.nets, self.nets.policy, self.rows, range(rollout.batch.num_rows))
        self.start: Float[Tensor, "B T"] = start
        self.old: Float[Tensor, "B T"] = start  # log-probs of the policy that counts as the old one
        self.moved: Float[Tensor, "B T"] = start  # at the weights the losses are taken at
        self.facts = TaskFacts(reward_range=self._reward_range(), limit=recipe.max_new_tokens)
        carried = int((~rollout.batch.fresh).sum())
        if carried:
            notes.append(
                f"{carried} of {rollout.batch.num_rows} responses were carried over from an earlier step: "
                "weights older than the others' sampled them."
            )
        self.records = records
        self.arms: dict[str, Arm] = {}

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        return self.rollout.batch.mask

    @property
    def key(self) -> tuple[int, int]:
        return self.spec.seed, self.rollout.step - 1

    def _start_weights(self) -> str:
        """The weights that sampled the batch where they are kept, else the nearest earlier ones; in words."""
        own = [p for p in checkpoint.steps(self.run.path / CHECKPOINTS) if int(p.name) < self.rollout.step]
        if own:
            progress = self._load(own[-1])
            if progress.step == self.rollout.step - 1 and progress.history_of is not None:
                self.histories.setdefault(progress.history_of, progress.history)
            return f"the checkpoint of step {int(own[-1].name)}"
        start = self.spec.start
        if start is not None:
            try:
                found = find(Path(start.run), start.checkpoint)
            except UsageError:
                raise UsageError(
                    f"{self.run.path}: it starts from {start.run} ({start.checkpoint})",
                    "that checkpoint is not there, so its initial weights are unknown",
                    "--checkpoint for the run's own newest one, or the folder back in its place",
                ) from None
            self._load(found)
        return "the initial weights"

    def _load(self, path: Path) -> Progress:
        return checkpoint.load(path, Optimizers(policy=self.optimizer), moments=False, critic=False)[0]

    def _reward_range(self) -> tuple[float, float]:
        try:
            return build_task(self.spec.task.name, self.spec.task.params).info.reward_range
        except UsageError:  # a file of questions that stayed on another machine
            reward = self.rollout.batch.reward
            self.notes.append("The task cannot be built here; its reward range is taken from the batch.")
            return min(0.0, float(reward.min())), max(1.0, float(reward.max()))

    def _focus(self, name: str, algorithm: Algorithm) -> Arm:
        values = self.rollout.values
        return focus(
            name,
            algorithm,
            self.rollout.batch,
            self.nets,
            self.facts,
            self.key,
            old_logp=self.old,
            values=torch.zeros_like(self.old) if values is None else values,
            history=self.histories.get(algorithm.selection.state or "", ()),
        )

    def _focus_all(self) -> None:
        self.arms = {name: self._focus(name, a) for name, a in self.records.items()}
        self.notes += [note for name, a in self.records.items() for note in self._memory(name, a.selection.state)]

    def _memory(self, name: str, state: str | None) -> list[str]:
        """What the selection of an arm knows here of earlier prompts."""
        if state is None:
            return []
        if self.histories.get(state):
            return [f"{name}: its selection knows the prompts before this batch as the run recorded them ({state})."]
        if state in self.histories or (self.rollout.step == 1 and self.spec.start is None):
            return [f"{name}: its selection had seen no prompts before this batch ({state}): k as in its warm-up."]
        return [
            f"{name}: the run folder does not tell what its selection would know of the prompts before this batch "
            f"({state}), so it selects as if this were the first one: k as in its warm-up."
        ]

    def move_by_pass(self) -> Weights:
        """One update pass of GRPO over this very batch, as the trainer does it, with a fresh optimizer."""
        fresh = self.mask & self.rollout.batch.fresh[:, None]
        gap = float((self.start - self.rollout.batch.behaviour_logp)[fresh].abs().mean())
        if gap > FAR_NATS:
            self.notes.append(
                f"The weights that sampled step {self.rollout.step} were not kept: the responses are looked at as if "
                f"{self.start_text} had sampled them (mean |logp - behaviour logp| is {gap:.2g} nats there)."
            )
        self._focus_all()
        recipe = self.spec.recipe
        algorithm = resolve_algorithm(PASS_ARM, arm_overrides(PASS_ARM), recipe)
        arm = self._focus(PASS_ARM, algorithm)
        assert arm.prepared is not None, "grpo admits every group"
        plan = plan_updates(arm.prepared, algorithm, (*self.key, SHUFFLE))
        steps = update(
            arm.prepared, algorithm, replace(self.nets, reference=None), Optimizers(policy=self.optimizer),
            Rates(policy=recipe.lr, critic=0.0), self.old.clone(), plan, width=recipe.max_new_tokens,
        )  # fmt: skip
        traces = [step.policy for step in steps if step.policy is not None]
        done = sum(not t.nonfinite and t.grad_norm > 0 for t in traces)
        if not done:
            self.notes.append("No group has both better and worse responses, so GRPO moves nothing: every ratio is 1.")
        text = f"after the {done} mini-batches of one GRPO update pass (lr {recipe.lr:g}) from {self.start_text}"
        return self._weights("pass", text, done, recipe.lr, gap)

    def move_to_checkpoint(self, newest: Path) -> Weights:
        """The run's newest checkpoint; the old policy is what sampled, by its recorded log-probs."""
        self.old = self.rollout.batch.behaviour_logp
        self._focus_all()
        self._load(newest)
        steps = int(newest.name) - self.rollout.step + 1
        if steps < 1:
            self.notes.append(f"Step {self.rollout.step} was sampled after the checkpoint of step {int(newest.name)}.")
        text = (
            f"the run's checkpoint of step {int(newest.name)}, {steps} rollout step{'s' * (steps != 1)} "
            f"after the weights that sampled step {self.rollout.step}"
        )
        return self._weights("checkpoint", text, None, None, None)

    def _weights(self, kind: Any, text: str, steps: int | None, lr: float | None, gap: float | None) -> Weights:
        moved = no_grad_logps(self.nets, self.nets.policy, self.rows, range(self.rollout.batch.num_rows))
        self.moved = moved
        return Weights(
            kind=kind,
            text=text,
            optimizer_steps=steps,
            lr=lr,
            sampling_gap=gap,
            ratio_quantiles=quantiles(self.token_ratio()[self.mask], (0, 0.05, 0.5, 0.95, 1)),
            sd_log_s=log_sequence_ratio_sd(moved, self.old, self.mask),
        )

    def token_ratio(self) -> Float[Tensor, "B T"]:
        """exp(logp - old_logp), 1 at masked positions."""
        return torch.where(self.mask, (self.moved - self.old).exp(), 1.0)

    def calibrated(self, arms: Sequence[Arm], sd: float) -> list[Arm]:
        """Clip ranges in units of SD(log s): the run's own measurement, else this drift's."""
        known = self.run.result.calibration.get("sd_log_s") if self.run.result else None
        found: list[Arm] = []
        for arm in arms:
            if not arm.algorithm.surrogate.needs_calibration:
                found.append(arm)
                said = range_warning(arm.algorithm, sd)
                self.notes += [] if said is None else [f"{arm.name}: {said}"]
            elif known is None and not sd > 0:
                self.notes.append(f"{arm.name} is left out: without drift there is nothing to calibrate its range on.")
            else:
                surrogate = arm.algorithm.surrogate.calibrated(float(known or sd))
                algorithm = arm.algorithm.model_copy(update={"surrogate": surrogate})
                found.append(replace(arm, algorithm=algorithm))
                where = "measured by the run" if known else "measured on this very drift"
                self.notes.append(f"{arm.name}: clip range in units of SD(log s) = {float(known or sd):.2g}, {where}.")
        return found
