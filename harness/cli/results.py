"""What is done with the runs of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import AsJson, DryRun, Model, Name, Results, Study, Task


@app.command()
def report(
    studies: Annotated[
        list[Path], typer.Argument(help="Study folders, <results>/<study>; or one report.json, to render again.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; <study>/report by default, for several a folder beside them.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again until every run is done.")] = False,
    every: Annotated[int, typer.Option(help="With --watch: seconds between two versions.", min=5)] = 30,
    as_json: AsJson = False,
) -> None:
    """Write the report of a study again: report.json, .md, .html, table.tex, CSVs and figures.

    Several studies make one report: arms are matched by name and averaged over the studies.

    Examples:

    `harness report results/quick-tiny-chain-1a2b3c`

    `harness report results/quick-tiny-chain-1a2b3c --watch`, beside a running study: the page reloads itself

    `harness report results/on-sums results/on-chains --out results/both`
    """
    from harness.commands.report import run_reports

    raise typer.Exit(run_reports(studies, out, as_json, every if watch else None))


@app.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(help="trainer_state.json, a JSONL of verl's file logger, or a CSV.")],
    study: Annotated[Path, typer.Option(help="The study folder that the run joins; made where there is none.")],
    arm: Annotated[str, typer.Option(help="Name of its arm in reports.")],
    seed: Annotated[int, typer.Option(help="Its seed: runs of equal seed are compared in pairs.", min=0)],
    form: Annotated[str, typer.Option("--format", help="trl, verl or csv.")],
    algorithm: Annotated[str | None, typer.Option(help="Its algorithm; the arm's name by default.")] = None,
    score: Annotated[str | None, typer.Option(help="Key of the held-out share of right answers, in [0, 1].")] = None,
    responses: Annotated[int | None, typer.Option(help="Responses sampled per rollout step.")] = None,
    updates: Annotated[int, typer.Option(help="Steps of the log per rollout batch.")] = 1,
    control: Annotated[bool, typer.Option("--control", help="The arm is a control.")] = False,
    collapsed: Annotated[bool, typer.Option("--collapsed", help="The run collapsed.")] = False,
    task: Task = None,
    model: Model = None,
    parameters: Annotated[int, typer.Option(help="Parameters of the model.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a run folder of a run of TRL, verl or anything that writes a CSV, to compare it with others.

    Only quantities whose formulas agree with the metric dictionary are taken; every report flags such a run.

    Examples:

    `harness import out/trainer_state.json --format trl --study results/mine --arm "GRPO (TRL)" --seed 0 --responses 64
    --score eval_accuracy --task gsm8k --model smollm2-135m`

    `harness import verl.jsonl --format verl --study results/mine --arm "GRPO (verl)" --seed 0 --responses 1024
    --score val-core/openai/gsm8k/acc/mean@1`
    """
    from harness.commands.import_run import run_import
    from harness.foreign.write import Wanted

    wanted = Wanted(
        source=source, library=form, study=study, arm=arm, algorithm=algorithm or arm.lower(), seed=seed,
        bracket="control" if control else "outcome", score=score, responses=responses, updates=updates,
        status="collapsed" if collapsed else "completed", task=task, model=model, parameters=parameters,
    )  # fmt: skip
    raise typer.Exit(run_import(wanted, as_json=as_json))


@app.command()
def mirror(
    study: Study,
) -> None:
    """Copy a study's run folders to MLflow, for instance after the server was away.

    Example: `MLFLOW_TRACKING_URI=http://localhost:5000 harness mirror results/quick-tiny-chain-1a2b3c`
    """
    from harness.commands.report import run_mirror

    raise typer.Exit(run_mirror(study))


@app.command()
def recover(
    runs: Annotated[list[Path], typer.Argument(help="Collapsed run folders, studies, or a YAML of type recovery.")],
    onset: Annotated[int | None, typer.Option(help="Name a collapse by hand: first step that was wrong.")] = None,
    confirm: Annotated[int | None, typer.Option(help="... and the step at which that was certain.")] = None,
    starts: Annotated[str | None, typer.Option(help="last_healthy, half, collapsed; by default all but half.")] = None,
    remedies: Annotated[
        str | None,
        typer.Option(
            help="restart, lr_third, lr_tenth, clip_tighter, clip_looser, new_queries, longer, fresh_optimizer, "
            "other_algorithm, default_settings; by default all that apply."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or a list: 3 or 101,102,103.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps of each attempt.")] = None,
    other: Annotated[str | None, typer.Option(help="The arm of other_algorithm; gspo, or grpo for gspo.")] = None,
    margin: Annotated[int | None, typer.Option(help="Steps from the last healthy checkpoint to the onset.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Attempts at a time.")] = None,
    results: Results = Path("results"),
    name: Name = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Is a collapse irreversible? Restart collapsed runs with one thing changed, and count what recovers.

    Every attempt is a run like any other: repeating the command continues what is unfinished.

    Examples:

    `harness recover results/quick-tiny-chain-1a2b3c --dry-run`

    `harness recover results/my-study/runs/grpo-s0-4d5e6f7a --onset 40 --remedies restart,lr_tenth --seeds 5`
    """
    from harness.commands.recover import RecoverOptions, run_recover

    options = RecoverOptions(
        runs=tuple(runs), onset=onset, confirm=confirm, starts=starts, remedies=remedies, seeds=seeds, steps=steps,
        other=other, margin=margin, parallel=parallel, results=results, name=name, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_recover(options))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder: RESULTS/STUDY/runs/RUN.")],
    hf: Annotated[Path, typer.Option("--hf", help="Folder to write, in the standard Hugging Face layout.")],
    checkpoint: Annotated[str, typer.Option(help="last, best, last_healthy, half, collapsed, or a step.")] = "last",
    as_json: AsJson = False,
) -> None:
    """Write a run's policy as a model folder that transformers, vLLM and every other library load.

    Example: `harness export results/quick-tiny-chain-1a2b3c/runs/grpo-s0-4d5e6f7a --hf my-model --checkpoint best`
    """
    from harness.commands.export import run_export

    raise typer.Exit(run_export(run, hf, checkpoint, as_json))


@app.command()
def gc(
    place: Annotated[
        Path, typer.Argument(metavar="[PLACE]", help="A run folder, a study, or a folder of studies.")
    ] = Path("results"),
    keep: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: last, newest, best, last_healthy, half, collapsed, start (of another run), ladder; "
            "or none. By default all but the ladder."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; remove nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove what a result, an event or another run refers to.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Free the disk of checkpoints that nothing refers to, and of what interruptions left behind.

    Examples:

    `harness gc --dry-run`

    `harness gc results/quick-tiny-chain-1a2b3c --keep last --force`
    """
    from harness.commands.gc import run_gc

    raise typer.Exit(run_gc(place, keep, dry_run=dry_run, force=force, as_json=as_json))
