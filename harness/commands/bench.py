"""`harness bench`: where the time and the memory of a step go, per algorithm, on this machine."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness import NUMERICS_VERSION
from harness.core.provenance import collect as collect_provenance
from harness.core.spec import BackendSpec, Budget, ModelSpec, Recipe, Roster, RunSpec, TaskSpec
from harness.models.recipes import recipe
from harness.study.arms import build_arm

if TYPE_CHECKING:
    from harness.assemble import Assembly

ARMS = ("ppo", "grpo", "dapo", "gspo", "gfpo_shortest", "grpo_process")
WARM_UP, STEPS = 3, 20


def run_bench(as_json: bool) -> int:
    """Steps of the embedded model, one fresh process per algorithm, one thread; medians over the steps."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in ARMS:
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure_arm, (name,)))
        if not as_json:
            print(line(rows[-1]), flush=True)
    p = collect_provenance([])
    machine = (
        f"{p.cpu}, {p.num_cpus} CPUs, torch {p.packages.get('torch')}, transformers {p.packages.get('transformers')}"
    )
    print(json.dumps({"machine": machine, "rows": rows}) if as_json else machine)
    return 0


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    return (
        f"{row['arm']:14} {1000 * row['step_s']:5.0f} ms/step: generation {row['generation']:4.0%}, "
        f"forward {row['forward']:4.0%}, backward {row['backward']:4.0%}, optimizer {row['optimizer']:4.0%}, "
        f"everything else {row['outside']:4.0%};"
        f"{row['tokens_per_s']:8,.0f} tok/s  peak +{row['memory_mib']:.0f} MiB"
    )


def measure_arm(name: str) -> dict[str, Any]:
    """Medians over `STEPS` steps; the record of a step counts as part of it. Writes nothing."""
    import torch

    from harness.assemble import assemble
    from harness.records import step_row
    from harness.train.loop import Progress, one_step

    roster: Roster = "matched"
    arm = build_arm(name, roster, several_rosters=False)
    spec = RunSpec(
        numerics_version=NUMERICS_VERSION,
        arm=arm.name,
        algorithm=arm.algorithm,
        overrides=arm.overrides,
        task=TaskSpec(name="chain"),
        model=ModelSpec(name="tiny"),
        recipe=Recipe.model_validate(recipe("tiny")),
        budget=Budget(steps=WARM_UP + STEPS),
        seed=0,
        backend=BackendSpec(threads=1),
    )
    torch.set_num_threads(1)
    watch = Stopwatch()
    parts = timed(assemble(spec), watch)
    progress = Progress()
    found: list[dict[str, float]] = []
    for number in range(WARM_UP + STEPS):
        watch.seconds.clear()
        start = time.perf_counter()
        outcome = one_step(parts.trainer, progress, 0.0)
        row = step_row(outcome, parts)
        whole = time.perf_counter() - start
        progress = outcome.progress
        if number >= WARM_UP:
            shares = {key: watch.seconds.get(key, 0.0) / whole for key in Stopwatch.KEYS}
            rest = 1 - sum(shares.values())
            found.append({"step_s": whole, **shares, "outside": rest, "tokens_per_s": row["perf/tok_per_s_e2e"]})
    medians = {key: statistics.median(f[key] for f in found) for key in found[0]}
    return {"arm": arm.name, **medians, "memory_mib": parts.peak_memory_mib() - parts.memory_after_import_mib}


class Stopwatch:
    """Seconds by phase."""

    KEYS = ("generation", "forward", "backward", "optimizer")

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
