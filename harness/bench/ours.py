"""Measures this project: whole steps, or the update alone on the recorded batch."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness import NUMERICS_VERSION
from harness.bench.batch import NaturalBatch
from harness.bench.batch import load as load_batch
from harness.bench.flops import matmul_peak, shape_of, useful_flops
from harness.bench.memory import account, kv_cache_mib, peak_mib, resident_mib, training_mib
from harness.bench.stopwatch import Stopwatch
from harness.bench.subjects import TASK, TASK_PARAMS, Subject
from harness.core.algorithm import Algorithm, leaves
from harness.core.registry import algorithm as preset
from harness.core.spec import BackendSpec, Budget, ModelSpec, Recipe, RunSpec, TaskSpec
from harness.models.recipes import recipe
from harness.study.arms import build_arm
from harness.study.measure import choose_backend

if TYPE_CHECKING:
    from harness.assemble import Assembly
    from harness.rollout.gather import Gathered
    from harness.train.loop import Progress, StepOutcome
    from harness.train.networks import Networks

PHASES = ("generation", "sync", "forward", "backward", "optimizer", "metrics", "detectors")


def step_spec(subject: Subject) -> RunSpec:
    """The run that a subject stands for."""
    if subject.arm is None:
        name, base, given = "GRPO (TRL)", "grpo_trl", {"penalties.kl": None}
    else:
        arm = build_arm(subject.arm, "matched", several_rosters=False)
        name, base, given = arm.name, arm.algorithm, dict(arm.overrides)
    known = leaves(preset(base))
    wanted: dict[str, Any] = {"updates.mini_batches": subject.optimizer_steps}
    if subject.arm is None:
        wanted["siblings"] = subject.siblings
    given |= {path: value for path, value in wanted.items() if known[path] != value}
    fields = {**recipe(subject.model), "prompts_per_step": subject.prompts}
    if subject.work == "update":
        fields["lr"] = 0.0  # the same weights, so the same work, in every repetition
    return RunSpec(
        numerics_version=NUMERICS_VERSION,
        arm=name,
        algorithm=base,
        overrides=given,
        task=TaskSpec(name=subject.task, params=TASK_PARAMS if subject.task == TASK else {}),
        model=ModelSpec(name=subject.model),
        recipe=Recipe.model_validate(fields),
        budget=Budget(steps=subject.warm_up + subject.steps),
        seed=0,
        backend=BackendSpec(
            threads=subject.threads, dtype=subject.dtype, sampler=subject.sampler, update=subject.update
        ),
    )


def on_this_machine(spec: RunSpec) -> RunSpec:
    """The same with what a study would choose here by measurement and no subject says: the attention."""
    given = spec.backend.model_dump(include={"sampler", "dtype", "threads", "update"})
    return spec.model_copy(update={"backend": choose_backend(spec.model, given)[0]})


def batch_of(subject: Subject) -> NaturalBatch:
    """The recorded batch in the subject's size and with its rewards."""
    batch = load_batch().part(subject.prompts, subject.siblings)
    return batch.every_row() if subject.rewards == "every_row" else batch


def measure_ours(subject: Subject) -> dict[str, Any]:
    """Every measured step's seconds by phase, memory, tokens, rewards. Writes no files."""
    import torch

    from harness.assemble import assemble
    from harness.monitor.watch import Monitor, update
    from harness.records import routing_of_step, step_row
    from harness.train.loop import Progress, one_step

    torch.set_num_threads(subject.threads)
    spec, watch = on_this_machine(step_spec(subject)), Stopwatch()
    begun = time.perf_counter()
    built = assemble(spec)
    assembled = resident_mib()
    parts = timed(built if subject.work == "step" else replayed(built, batch_of(subject)), watch)
    parts.sampler.sync(0)
    startup = time.perf_counter() - begun

    def numbers(outcome: StepOutcome, parts: Assembly) -> dict[str, Any]:
        return step_row(outcome, parts, routing_of_step(outcome, parts)[0])

    record, detect = watch.around("metrics", numbers), watch.around("detectors", update)
    monitor = Monitor(siblings=parts.algorithm.siblings, reward_low=parts.task.info.reward_range[0])
    progress, steps, rewards = Progress(), [], []
    for number in range(subject.warm_up + subject.steps):
        watch.reset()
        start = time.perf_counter()
        outcome = one_step(parts.trainer, progress, 0.0)
        row = record(outcome, parts)
        monitor = detect(monitor, row).state
        whole = time.perf_counter() - start
        progress = outcome.progress
        rewards += [t.grade.score for g in outcome.gathered.sampled for t in g.trajectories]
        if number >= subject.warm_up:
            steps.append(step_numbers(watch.seconds, whole, outcome) | {"tokens_per_s": row["perf/tok_per_s_e2e"]})
    found = {
        "startup_s": startup,
        "steps": steps,
        "rewards": reward_numbers(rewards),
        "memory_mib": memory_of(subject, parts, assembled),
    }
    return found | (efficiency(subject, parts) if subject.work == "update" else {})


def step_numbers(seconds: dict[str, float], whole: float, outcome: StepOutcome) -> dict[str, float]:
    """One step: seconds by phase, what no phase covers, tokens sampled and tokens in the batch."""
    phases = {key: seconds.get(key, 0.0) for key in PHASES}
    batch = 0 if outcome.prepared is None else int(outcome.prepared.batch.mask.sum())
    return {
        "step_s": whole,
        **{f"{key}_s": value for key, value in phases.items()},
        "other_s": whole - sum(phases.values()),
        "sampled_tokens": float(sum(len(t.response_ids) for g in outcome.gathered.sampled for t in g.trajectories)),
        "batch_tokens": float(batch),
    }


def reward_numbers(rewards: list[float]) -> dict[str, float]:
    """Mean and its standard error over responses."""
    mean = fmean(rewards)
    variance = fmean((r - mean) ** 2 for r in rewards)
    return {"mean": mean, "se": (variance / len(rewards)) ** 0.5, "n": float(len(rewards))}


def memory_of(subject: Subject, parts: Assembly, assembled: float) -> dict[str, float]:
    """The peak by component; an engine is what the assembled run holds beyond imports and the trainer's weights."""
    imports = parts.memory_after_import_mib
    masters = subject.dtype != "float32"
    known = training_mib(parts.model.policy, masters=masters)
    nets = parts.trainer.nets
    if nets.critic is not None:
        known |= {f"critic {k}": v for k, v in training_mib(nets.critic, masters=masters).items()}
    if subject.work == "step" and subject.sampler == "transformers":
        positions = max(len(p) for p in parts_prompts(parts)) + parts.spec.recipe.max_new_tokens
        rows = subject.prompts * parts.algorithm.siblings
        size = 4 if subject.dtype == "float32" else 2
        known["KV cache"] = kv_cache_mib(parts.model.policy.config, rows, positions, size)
    if subject.sampler == "vllm":
        weights = known["weights"] * (3 if masters else 1)  # bf16 weights and float32 masters
        known["engine"] = max(0.0, assembled - imports - weights)
    return account(peak_mib(), imports, known)


def parts_prompts(parts: Assembly) -> list[tuple[int, ...]]:
    """The first rollout batch's prompts as tokens."""
    from harness.rollout.order import MAIN, train_prompts

    wanted = parts.spec.recipe.prompts_per_step
    return [parts.codec.encode(p.messages) for p in train_prompts(parts.task, parts.spec.seed, MAIN, 0, wanted)]


def efficiency(subject: Subject, parts: Assembly) -> dict[str, Any]:
    """Useful operations of the batch and the machine's matrix-multiply rate, measured in this process."""
    batch = batch_of(subject)
    lengths = [
        (len(prompt), [len(r) for r in responses])
        for prompt, responses, informative in zip(batch.prompts, batch.responses, batch.informative, strict=True)
        if informative
    ]
    return {
        "useful_flops": useful_flops(shape_of(parts.model.policy), lengths),
        "matmul_flops_per_s": matmul_peak(subject.dtype),
        "informative": fmean(batch.informative),
    }


def replayed(parts: Assembly, batch: NaturalBatch) -> Assembly:
    """The run with the recorded batch in place of sampling."""
    from harness.rollout.gather import Gathered

    groups = batch.groups()

    def gathered(algorithm: Algorithm, current: Recipe, progress: Progress) -> Gathered:
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

    return replace(parts, trainer=replace(parts.trainer, gather=gathered))


def timed(parts: Assembly, watch: Stopwatch) -> Assembly:
    """The same run with a stopwatch around its heavy calls; only for a process that ends afterwards."""
    import torch

    from harness.train import critic, update

    nets = timed_networks(parts.trainer.nets, watch)
    parts.sampler.generate = watch.around("generation", parts.sampler.generate)  # type: ignore[method-assign]
    torch.autograd.backward = watch.around("backward", torch.autograd.backward)  # every backward ends there
    update.policy_loss = watch.around("forward", update.policy_loss)  # type: ignore[attr-defined]
    critic.value_loss = watch.around("forward", critic.value_loss)  # type: ignore[attr-defined]
    for optimizer in (parts.optimizers.policy, parts.optimizers.critic):
        if optimizer is not None:
            optimizer.step = watch.around("optimizer", optimizer.step)  # type: ignore[method-assign]
    trainer = replace(parts.trainer, nets=nets, sync=watch.around("sync", parts.trainer.sync))
    return replace(parts, trainer=trainer)


def timed_networks(nets: Networks, watch: Stopwatch) -> Networks:
    """Forwards of rows, of shared prompts and of the critic."""
    changes: dict[str, Any] = {"token_logps": watch.around("forward", nets.token_logps)}
    if nets.critic is not None:
        nets.critic.forward = watch.around("forward", nets.critic.forward)
    run_prompts = getattr(nets, "run_prompts", None)
    if run_prompts is not None:
        start = watch.around("forward", run_prompts)
        changes["run_prompts"] = lambda *args, **kwargs: TimedPrompts(start(*args, **kwargs), watch)
    return replace(nets, **changes)


class TimedPrompts:
    """Prompts that siblings share, with a stopwatch around what starts from them."""

    def __init__(self, prompts: Any, watch: Stopwatch) -> None:
        self.logps = watch.around("forward", prompts.logps)
        self.values = watch.around("forward", prompts.values)
        self.backward = watch.around("backward", prompts.backward)
