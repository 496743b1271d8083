"""The command line: `harness VERB`.

Exit codes: 0 done, 2 usage, 3 comparison invalid, 4 some runs failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from harness.core.errors import HarnessError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which RL algorithm, and which component of it, for your model and task: with what confidence, at what cost.",
)

Results = Annotated[Path, typer.Option("--results", help="Folder for studies and mlflow.db.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead of tables.")]


@app.command()
def compare(
    preset: Annotated[str, typer.Option(help="quick, default, or the path of a study YAML.")] = "quick",
    task: Annotated[str | None, typer.Option(help="chain, reasoning_gym:<generator>, or <file>.jsonl.")] = None,
    task_param: Annotated[list[str] | None, typer.Option("--task-param", "-t", help="name=value, repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="For .jsonl: e.g. '{Body} {Question}'.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="For .jsonl: the field with the gold answer.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="auto, chat or plain.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string, repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, smollm2-135m, a Hugging Face id or a local path.")] = None,
    algorithms: Annotated[str | None, typer.Option("--algorithms", "-a", help="Comma-separated; see `list`.")] = None,
    controls: Annotated[str | None, typer.Option(help="Comma-separated control arms, or `none`.")] = None,
    roster: Annotated[str | None, typer.Option(help="matched, published, or both.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A number of seeds, or a list: 3 or 0,1,2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in rollout steps (instead of tokens).")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in sampled tokens per run.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", help="recipe.lr=1e-4, updates.mini_batches=8, GRPO:surrogate.high=.28; repeatable."
        ),
    ] = None,
    parallel: Annotated[int | None, typer.Option(help="Runs at a time.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads per run (changes rounding, so it is recorded).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; measured where not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    results: Results = Path("results"),
    name: Annotated[
        str | None, typer.Option(help="Name of the study folder; derived from the settings by default.")
    ] = None,
    run_equivalent: Annotated[bool, typer.Option(help="Also run arms that equal another by mathematics.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Mirror to MLflow.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, the rendered first prompt and the cost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare algorithms on one model, task and budget; repeating the command continues it.

    Examples:

    `harness compare` runs the embedded model for some ten minutes on two cores.

    `harness compare --model smollm2-135m --task reasoning_gym:chain_sum -t min_terms=2 -t max_terms=2 --steps 30`

    `harness compare --model Qwen/Qwen3-0.6B --task my.jsonl --prompt '{question}' --answer-field answer --seeds 5`
    """
    from harness.commands.compare import run_compare
    from harness.commands.options import CompareOptions

    options = CompareOptions(
        preset=preset, task=task, task_params=tuple(task_param or ()), prompt=prompt, answer_field=answer_field,
        system=system, template=template, stop=tuple(stop or ()), model=model, algorithms=algorithms,
        controls=controls, roster=roster, seeds=seeds, steps=steps, tokens=tokens, sets=tuple(sets or ()),
        parallel=parallel, threads=threads, dtype=dtype, device=device, results=results, name=name,
        run_equivalent=run_equivalent, mlflow=mlflow, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_compare(options))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="A study folder, <results>/<study>.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; <study>/report by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a study again: report.json, .md, .html and tables.

    Example: `harness report results/quick-tiny-chain-1a2b3c`
    """
    from harness.commands.report import run_report

    raise typer.Exit(run_report(study, out, as_json))


@app.command()
def mirror(
    study: Annotated[Path, typer.Argument(help="A study folder, <results>/<study>.")],
) -> None:
    """Copy a study's run folders to MLflow, for instance after the server was away.

    Example: `MLFLOW_TRACKING_URI=http://localhost:5000 harness mirror results/quick-tiny-chain-1a2b3c`
    """
    from harness.commands.report import run_mirror

    raise typer.Exit(run_mirror(study))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="algorithms, arms, parts, tasks, models, metrics, presets or studies.")],
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """List what can be named on the command line.

    Example: `harness list arms`
    """
    from harness.commands.listing import run_list

    raise typer.Exit(run_list(what, results, as_json))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: packages, devices, models, and what is missing.

    Example: `harness doctor`
    """
    from harness.commands.listing import run_doctor

    raise typer.Exit(run_doctor(as_json))


@app.command()
def microscope(
    run: Annotated[Path | None, typer.Argument(help="A run folder: RESULTS/STUDY/runs/RUN.")] = None,
    fixture: Annotated[bool, typer.Option("--fixture", help="The bundled batch of the embedded model.")] = False,
    step: Annotated[int | None, typer.Option(help="Which recorded rollout batch; by default the first.")] = None,
    algorithms: Annotated[str | None, typer.Option("--algorithms", "-a", help="Comma-separated; see `list`.")] = None,
    roster: Annotated[str, typer.Option(help="matched or published.")] = "matched",
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="GFPO:selection.k=4, surrogate.high=.28; repeatable.")
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint",
            help="Look from the run's newest checkpoint, not from one GRPO pass after its first weights.",
        ),
    ] = False,
    groups: Annotated[int, typer.Option(help="Prompts shown token by token.")] = 3,
    rows: Annotated[int, typer.Option(help="Responses shown of each.")] = 4,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; RUN/microscope, or ./microscope with --fixture.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Why algorithms differ: one recorded rollout batch under each, token by token.

    At the weights that sampled, every ratio is 1 and nothing is clipped. So the losses are taken a few optimizer
    steps on: after one update pass of GRPO over the batch, or at the run's newest checkpoint.
    Writes microscope.json, .html and .safetensors.

    Examples:

    `harness microscope --fixture`

    `harness microscope results/quick-tiny-chain-1a2b3c/runs/grpo-s0-4d5e6f7a -a grpo,gspo -s GSPO:surrogate.high=0.03`
    """
    from harness.commands.microscope import MicroscopeOptions, run_microscope

    options = MicroscopeOptions(
        run=run, fixture=fixture, step=step, algorithms=algorithms, roster=roster, sets=tuple(sets or ()),
        checkpoint=checkpoint, groups=groups, rows=rows, out=out, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_microscope(options))


@app.command()
def bench(as_json: AsJson = False) -> None:
    """Where time and memory of a step of the embedded model go, per algorithm, on this machine.

    Example: `harness bench --json`
    """
    from harness.commands.bench import run_bench

    raise typer.Exit(run_bench(as_json))


@app.command()
def conform(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Golden cases (.npz); those of the checkout by default.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="module:function, a loss f(inputs, hyper) -> scalar to check instead of ours.")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Only this suite, repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check our losses, or yours, against numbers computed by verl, TRL and OpenRLHF.

    Examples:

    `harness conform`

    `harness conform --loss my_package.losses:grpo --suite grpo_trl`
    """
    from harness.commands.conform import run_conform

    raise typer.Exit(run_conform(folder, loss, tuple(suite or ()), as_json))


def guarded(run: Callable[[], object]) -> int:
    """Turns our errors into one message and an exit code."""
    try:
        run()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def main() -> None:
    """Entry point."""
    sys.exit(guarded(lambda: app()))
