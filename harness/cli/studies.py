"""`harness compare`, and what plans and extends a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import (
    AnswerField,
    AsJson,
    Device,
    DryRun,
    Dtype,
    MLflow,
    Model,
    Name,
    Parallel,
    Prompt,
    Results,
    Reward,
    Steps,
    Stop,
    System,
    Task,
    TaskParam,
    Template,
    Tokens,
)


@app.command()
def compare(
    preset: Annotated[str, typer.Option(help="quick, default, or the path of a study YAML.")] = "quick",
    task: Task = None,
    task_param: TaskParam = None,
    prompt: Prompt = None,
    answer_field: AnswerField = None,
    reward: Reward = None,
    system: System = None,
    template: Template = None,
    stop: Stop = None,
    model: Model = None,
    algorithms: Annotated[str | None, typer.Option("--algorithms", "-a", help="Comma-separated; see `list`.")] = None,
    controls: Annotated[str | None, typer.Option(help="Comma-separated control arms, or `none`.")] = None,
    roster: Annotated[str | None, typer.Option(help="matched, published, or both.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or a list: 3 or 0,1,2.")] = None,
    steps: Steps = None,
    tokens: Tokens = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="recipe.lr=1e-4, GRPO:surrogate.high=.28, backend.engine.dtype=int8; repeatable."
        ),
    ] = None,
    parallel: Parallel = None,
    sampler: Annotated[
        str | None, typer.Option(help="transformers, or vllm; `-s backend.engine.KEY=VALUE` sets its engine up.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per run (changes rounding, so it is recorded).")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    results: Results = Path("results"),
    name: Name = None,
    run_equivalent: Annotated[bool, typer.Option(help="Also run arms that equal another by mathematics.")] = False,
    mlflow: MLflow = True,
    two_stage: Annotated[
        bool, typer.Option("--two-stage", help="Declare one `extend` to twice the seeds; both looks at level .0294.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Compare algorithms on one model, task and budget; repeating the command continues it.

    Examples:

    `harness compare` runs the embedded model for some ten minutes on two cores.

    `harness compare --model smollm2-135m --task reasoning_gym:chain_sum -t min_terms=2 -t max_terms=2 --steps 30`

    `harness compare --model Qwen/Qwen3-0.6B --task my.jsonl --prompt '{question}' --answer-field answer --seeds 5`

    `harness compare --task my.jsonl --reward my.py:score -t reward_range=-1,1 -t reward_seconds=5`
    """
    from harness.commands.compare import run_compare
    from harness.commands.options import CompareOptions

    options = CompareOptions(
        preset=preset, task=task, task_params=tuple(task_param or ()), prompt=prompt, answer_field=answer_field,
        reward=reward, system=system, template=template, stop=tuple(stop or ()), model=model, algorithms=algorithms,
        controls=controls, roster=roster, seeds=seeds, steps=steps, tokens=tokens, sets=tuple(sets or ()),
        parallel=parallel, sampler=sampler, threads=threads, dtype=dtype, device=device, results=results, name=name,
        run_equivalent=run_equivalent, mlflow=mlflow, dry_run=dry_run, as_json=as_json, two_stage=two_stage,
    )  # fmt: skip
    raise typer.Exit(run_compare(options))


@app.command()
def probe(
    task: Task = None,
    task_param: TaskParam = None,
    prompt: Prompt = None,
    answer_field: AnswerField = None,
    reward: Reward = None,
    system: System = None,
    template: Template = None,
    stop: Stop = None,
    model: Model = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    prompts: Annotated[int, typer.Option(help="Prompts of the split, from its first on.")] = 100,
    samples: Annotated[int, typer.Option(help="Responses per prompt.")] = 8,
    keep: Annotated[str, typer.Option(help="Pass rates that the written prompt file holds.")] = "0.1,0.9",
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="recipe.max_new_tokens=512, recipe.temperature=0.8, ...")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="transformers or vllm.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    results: Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Folder to write; derived from the settings by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sampled.")] = False,
    as_json: AsJson = False,
) -> None:
    """Can the model learn from this task? pass@k per prompt, cut-off responses, expected informative groups.

    Writes the prompts of medium difficulty as a task file. Repeating the command continues it.

    Example: `harness probe --model smollm2-135m --task my.jsonl --prompts 200 --samples 16 --keep 0.1,0.9`
    """
    from harness.commands.options import CompareOptions
    from harness.commands.probe import ProbeOptions, run_probe

    study = CompareOptions(
        preset="quick", task=task, task_params=tuple(task_param or ()), prompt=prompt, answer_field=answer_field,
        reward=reward, system=system, template=template, stop=tuple(stop or ()), model=model, algorithms="grpo",
        controls="none", seeds="1", steps=1, sets=tuple(sets or ()),
        sampler=sampler, threads=threads, dtype=dtype, device=device, results=results,
        mlflow=False, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_probe(ProbeOptions(
        study=study, split=split, prompts=prompts, samples=samples, keep=keep, out=out
    )))  # fmt: skip


@app.command()
def extend(
    study: Annotated[Path, typer.Argument(help="A finished study folder, <results>/<study>.")],
    seeds: Annotated[int, typer.Option(help="Seed pairs to add to every arm.")],
    parallel: Parallel = None,
    mlflow: MLflow = True,
    as_json: AsJson = False,
) -> None:
    """Add seeds to a study, under the plan it declared in study.lock; anything else is reported as exploratory.

    Adding seeds until a p value is small is no test. `harness compare --two-stage --seeds 7` declares one extension.

    Example: `harness extend results/quick-tiny-chain-1a2b3c --seeds 7`
    """
    from harness.commands.extend import run_extend

    raise typer.Exit(run_extend(study, seeds, parallel=parallel, mlflow=mlflow, as_json=as_json))


@app.command()
def plan(
    study: Annotated[Path | None, typer.Argument(help="A pilot study; or state --sd and --base.")] = None,
    gain: Annotated[float, typer.Option(help="Difference in score that should be seen.")] = 0.02,
    arms: Annotated[int | None, typer.Option(help="Arms compared with the reference; the pilot's by default.")] = None,
    sd: Annotated[float | None, typer.Option(help="SD over seeds of the paired difference.")] = None,
    base: Annotated[float | None, typer.Option(help="Pass rate of the base model.")] = None,
    siblings: Annotated[str, typer.Option(help="Group sizes to look at.")] = "4,8,16,32",
    tokens: Annotated[int | None, typer.Option(help="Sampled tokens per run.")] = None,
    speed: Annotated[float | None, typer.Option(help="Sampled tokens per second of one run.")] = None,
    as_json: AsJson = False,
) -> None:
    """How many seeds, questions and groups a study needs, and what it costs. Exits 2 where it cannot succeed.

    Examples:

    `harness plan results/quick-tiny-chain-1a2b3c --gain 0.03`

    `harness plan --sd 0.03 --gain 0.03 --base 0.2 --arms 5 --tokens 2000000 --speed 900`
    """
    from harness.commands.plan import PlanOptions, run_plan

    options = PlanOptions(
        study=study, gain=gain, arms=arms, sd=sd, base=base, siblings=siblings, tokens=tokens, speed=speed,
        as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_plan(options))
