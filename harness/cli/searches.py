"""`harness ablate` and `harness tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import (
    AnswerField,
    AsJson,
    BudgetSeconds,
    BudgetTokens,
    Dimensions,
    DryRun,
    KlLimit,
    MLflow,
    Model,
    Name,
    Parallel,
    Prompt,
    Prune,
    Results,
    Reward,
    Steps,
    Storage,
    Task,
    TaskParam,
    Tokens,
)


@app.command()
def ablate(
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="See `harness list ablations`, or a YAML; dapo by default.")
    ] = None,
    design: Annotated[
        str | None, typer.Option(help="factorial, fraction, leave-one-out, add-one-in, path; of the preset's factors.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(help="grpo:dapo, from one algorithm to another, one slot at a time; no preset's factors."),
    ] = None,
    stress: Annotated[
        list[str] | None,
        typer.Option(help="Cross every cell with lr=1,3 (factors), updates=4,16 or PATH=A,B; repeatable."),
    ] = None,
    task: Task = None,
    task_param: TaskParam = None,
    prompt: Prompt = None,
    answer_field: AnswerField = None,
    reward: Reward = None,
    model: Model = None,
    controls: Annotated[str | None, typer.Option(help="Comma-separated control arms beside the design.")] = None,
    roster: Annotated[str | None, typer.Option(help="matched or published.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A number of paired seeds, or a list: 3 or 0,1,2.")] = None,
    steps: Steps = None,
    tokens: Tokens = None,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", help="In every cell: recipe.lr=1e-4, ...")] = None,
    parallel: Parallel = None,
    budget_tokens: BudgetTokens = None,
    budget_seconds: BudgetSeconds = None,
    storage: Storage = None,
    results: Results = Path("results"),
    name: Name = None,
    mlflow: MLflow = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Which component of it? Vary the slots of an algorithm by a design; repeating the command continues it.

    Effects and interactions with intervals, exact tests of collapse, Shapley values over a full cube.

    Examples:

    `harness ablate -p dapo --dry-run` shows the 16 cells of DAPO's four parts.

    `harness ablate -p dapo --design leave-one-out --seeds 5 --stress lr=1,3`

    `harness ablate --path grpo:gspo --model smollm2-135m --task reasoning_gym:chain_sum --steps 30`
    """
    from harness.commands.ablate import AblateOptions, run_ablate
    from harness.commands.options import CompareOptions
    from harness.study.spending import Limits

    shared = CompareOptions(
        preset=preset or ("default" if path else "dapo"), task=task, task_params=tuple(task_param or ()),
        prompt=prompt, answer_field=answer_field, reward=reward, model=model,
        controls=controls, roster=roster, seeds=seeds, steps=steps, tokens=tokens,
        sets=tuple(sets or ()), parallel=parallel,
        results=results, name=name,
        mlflow=mlflow, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    options = AblateOptions(
        compare=shared, design=design, path=path, stress=tuple(stress or ()), storage=storage,
        budget=Limits(tokens=budget_tokens, seconds=budget_seconds),
    )  # fmt: skip
    raise typer.Exit(run_ablate(options))


@app.command()
def tune(
    algorithms: Annotated[
        str | None,
        typer.Option("--algorithms", "-a", help="Comma-separated, each searched alike; the preset's by default."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Per algorithm, the defaults (trial 0) included.", min=1)] = 20,
    tuning_seeds: Annotated[str, typer.Option(help="A number of seeds from 1000 on, or a list.")] = "3",
    seeds: Annotated[str, typer.Option(help="Fresh seeds of the re-evaluation: a number, or a list.")] = "5",
    top: Annotated[int, typer.Option(help="Configurations per algorithm that are run again.", min=1)] = 3,
    search: Annotated[str | None, typer.Option(help="tpe, gp, nsga2, qmc or random.")] = None,
    objectives: Annotated[
        str, typer.Option(help="score; or several of score, instability, sampled_tokens: then nsga2.")
    ] = "score",
    dims: Dimensions = None,
    memory_gib: Annotated[float | None, typer.Option(help="Limit of a run's memory, a constraint.")] = None,
    kl_limit: KlLimit = None,
    prune: Prune = "none",
    budget_tokens: BudgetTokens = None,
    budget_seconds: BudgetSeconds = None,
    preset: Annotated[str, typer.Option(help="The study that is tuned: quick, tuning, default, or a YAML.")] = "quick",
    task: Task = None,
    task_param: TaskParam = None,
    prompt: Prompt = None,
    answer_field: AnswerField = None,
    reward: Reward = None,
    model: Model = None,
    roster: Annotated[str | None, typer.Option(help="matched or published: where the defaults come from.")] = None,
    steps: Steps = None,
    tokens: Tokens = None,
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", help="As in `harness compare`.")] = None,
    parallel: Parallel = None,
    storage: Storage = None,
    results: Results = Path("results"),
    name: Name = None,
    mlflow: MLflow = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Is the winner just better tuned? Search every algorithm with the same budget, then compare on fresh seeds.

    Trial 0 is the defaults. A trial is the mean over tuning seeds on the validation split; a collapse is a violated
    constraint with its real score. Repeating the command continues it; more --trials extend it.

    Examples:

    `harness tune -a grpo,gspo --trials 20 --dry-run`

    `harness tune --preset tuning` searches the six algorithms on the embedded model.

    `harness tune -a gspo --trials 40 --search gp --dim surrogate.high=1e-4:1e-1:log --dim siblings=4,8,16`
    """
    from harness.commands.options import CompareOptions
    from harness.commands.tune import TuneOptions, run_tune
    from harness.study.spending import Limits

    shared = CompareOptions(
        preset=preset, task=task, task_params=tuple(task_param or ()), prompt=prompt, answer_field=answer_field,
        reward=reward, model=model, algorithms=algorithms, controls="none",
        roster=roster, seeds=seeds, steps=steps, tokens=tokens, sets=tuple(sets or ()), parallel=parallel,
         results=results, name=name,
        mlflow=mlflow, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    options = TuneOptions(
        compare=shared, trials=trials, tuning_seeds=tuning_seeds, top=top, search=search, objectives=objectives,
        dims=tuple(dims or ()), memory_gib=memory_gib, kl_limit=kl_limit, pruner=prune,
        budget=Limits(tokens=budget_tokens, seconds=budget_seconds), storage=storage,
    )  # fmt: skip
    raise typer.Exit(run_tune(options))
