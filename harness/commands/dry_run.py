"""`harness compare --dry-run`: the resolved plan, the rendered first prompt, the predicted cost. Writes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from harness.commands.engine import engine_words, num_parallel
from harness.commands.options import CompareOptions
from harness.core.algorithm import component_matrix, difference
from harness.core.retention import fitting, most, room
from harness.core.spec import StudySpec
from harness.study.arms import records
from harness.study.build import Planned, run_specs
from harness.study.compare import plan_runs
from harness.study.disk import human
from harness.study.live import duration
from harness.study.measure import EMBEDDED

if TYPE_CHECKING:
    from harness.assemble import Assembly

PROBE_PROMPTS, PROBE_SAMPLES = 4, 4
PROBE_STEP = 8  # samples of every prompt of a step, where the model is embedded


def show_plan(planned: Planned, measured: Mapping[str, Any], options: CompareOptions) -> int:
    """Prints what would be done."""
    spec = planned.spec
    parallel = num_parallel(spec, measured, options.parallel)
    probe = probe_run(spec)
    folder = options.results / spec.name
    left = sum(not r.done for r in plan_runs(spec, folder))
    cost = predict(spec, probe, left, parallel)
    room = disk(spec, probe, cost["tokens_per_run"])
    if options.as_json:
        plan = {"spec": spec.model_dump(mode="json"), "probe": probe, "cost": cost, "disk": room, "folder": str(folder)}
        print(json.dumps({**plan, "todo": left}))
        return 0
    console = Console()
    console.print(f"[bold]{spec.name}[/bold]  (nothing is run or written)")
    console.print(f"task {spec.task.name} {spec.task.params or ''}, model {spec.model.name}, seeds {list(spec.seeds)}")
    console.print(f"sampling {engine_words(spec.backend)}, training in {spec.backend.dtype} on {spec.backend.device}")
    console.print(f"backend {spec.backend.model_dump()}")
    if "seconds" in measured:
        console.print(f"measured here: seconds per small forward-backward {measured['seconds']}")
    console.print(f"recipe {spec.recipe.model_dump(exclude={'overrides'})}")
    console.print(f"the recipe sets, wherever an arm has them: {', '.join(planned.recipe_notes) or 'nothing'}")
    _show_arms(console, spec)
    console.print("\n[bold]first prompt as the model sees it[/bold]")
    console.print(Text(probe["prompt"]))
    console.print("[bold]a response of the untrained model[/bold]")
    console.print(Text(f"{probe['response']}  ->  {probe['why']}, reward {probe['reward']}"))
    console.print(f"\n[bold]cost[/bold]  {cost['text']}")
    console.print(f"[bold]disk[/bold]  {room['text']}")
    return 0


def _show_arms(console: Console, spec: StudySpec) -> None:
    built = records(spec.arms, spec.recipe)
    reference = built[spec.reference_arm]
    console.print(f"\n[bold]{spec.reference_arm}[/bold], the reference")
    for slot, row in component_matrix({spec.reference_arm: reference}).items():
        console.print(Text(f"  {slot:10} {row[spec.reference_arm]}"))
    if len(spec.arms) > 1:
        console.print("[bold]the other arms differ from it in[/bold]")
    for arm in spec.arms:
        changes = difference(reference, built[arm.name])
        shown = ", ".join(
            [
                *(f"{path}={new}" for path, (_, new) in changes.items() if new is not None),
                *(f"recipe.{key}={value}" for key, value in arm.recipe.items()),
                *(f"backend.{key}={value}" for key, value in arm.backend.items()),
                *(f"at {e.at:g} of the budget {e.overrides}" for e in arm.schedule),
            ]
        )
        if arm.name != spec.reference_arm:
            console.print(Text(f"  {arm.name} [{arm.bracket}]: {shown or 'nothing'}"))
    for skipped in spec.skipped:
        console.print(Text(f"  not run: {skipped.name}, {skipped.reason} (--run-equivalent runs it)"))


def probe_run(spec: StudySpec) -> dict[str, Any]:
    """Samples a few responses from the untrained model."""
    import torch

    from harness.assemble import assemble

    torch.set_num_threads(spec.backend.threads)  # as the runs do: more threads than free cores are many times slower
    parts = assemble(run_specs(spec)[0])
    try:
        return _probe(spec, parts)
    finally:
        parts.sampler.close()


def _probe(spec: StudySpec, parts: Assembly) -> dict[str, Any]:
    from harness.rollout.order import held_out_prompts

    embedded = spec.model.name in EMBEDDED
    count, samples = (spec.recipe.prompts_per_step, PROBE_STEP) if embedded else (PROBE_PROMPTS, PROBE_SAMPLES)
    prompts = held_out_prompts(parts.task, "validation", count)
    parts.collector.collect(prompts[:1], 1, (0, 0))  # warm-up
    start = time.monotonic()
    groups = parts.collector.collect(prompts, samples, (0, 0)).groups
    seconds = time.monotonic() - start
    rows = [t for g in groups for t in g.trajectories]
    tokens = sum(t.num_tokens for t in rows)
    first = rows[0]
    return {
        "prompt": parts.codec.render(first.prompt.messages),
        "response": first.text,
        "why": first.grade.why,
        "reward": first.grade.score,
        "template_sha256": parts.codec.template_sha256,
        "mean_length": tokens / len(rows),
        "mean_reward": sum(t.grade.score for t in rows) / len(rows),
        "responses": len(rows),
        "generated_tokens_per_s": tokens / seconds,
        "parameters": parts.model.parameters,
    }


def predict(spec: StudySpec, probe: Mapping[str, Any], runs: int, parallel: int) -> dict[str, Any]:
    """Tokens and a rough time: generation at the probed speed, twice as long again for grading and updates."""
    per_step = spec.recipe.prompts_per_step * 8 * probe["mean_length"]
    tokens = spec.budget.sampled_tokens or int((spec.budget.steps or 1) * per_step)
    seconds = 3 * tokens * runs / probe["generated_tokens_per_s"] / parallel
    speed = f"{probe['generated_tokens_per_s']:,.0f} tokens/s of a probe of {probe['responses']} responses"
    text = (
        f"{runs} runs to do, about {tokens:,} sampled tokens each; at the {speed} "
        f"roughly {duration(seconds)} with {parallel} at a time "
        "(grading and updates guessed at twice the time of generation)"
    )
    return {"runs": runs, "tokens_per_run": tokens, "seconds": seconds, "text": text}


def disk(spec: StudySpec, probe: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Bytes of a checkpoint (fp32 weights and two moments, the same for a critic) and the most that lie on the disk."""
    steps = spec.budget.steps or ceil(tokens / (spec.recipe.prompts_per_step * 8 * probe["mean_length"]))
    critic = any("critic" in a.needs for a in records(spec.arms, spec.recipe).values())
    each = probe["parameters"] * 12 * (1 + critic)
    kept = spec.checkpoints
    under_way, after = most(kept, steps, each), kept.newest + kept.best
    ladder = fitting(steps, kept.every, kept.dense, room(kept, each, collapsed=True))
    text = (
        f"a checkpoint takes up to {human(each)}; at most {under_way} of them per run under way "
        f"({human(each * under_way)}), {after} after a run without a collapse; `harness gc` frees more"
    )
    if kept.every and not ladder:
        text += "; that leaves no ladder, so recovery can start from the best checkpoint only (checkpoints.limit_gib)"
    return {"checkpoint_bytes": each, "under_way": under_way, "after": after, "text": text}
