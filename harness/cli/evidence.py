"""How losses and detectors are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import AsJson, Results


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


@app.command("validate-detectors")
def validate_detectors(
    curves: Annotated[
        Path | None, typer.Option(help="Folder of CSV files with a `step` column and metric names: list their events.")
    ] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Synthetic curves only.")] = False,
    induced: Annotated[bool, typer.Option("--induced", help="Real runs broken on purpose only.")] = False,
    faults: Annotated[int, typer.Option(help="Synthetic curves per type of fault and family.", min=1)] = 60,
    healthy: Annotated[int, typer.Option(help="Synthetic healthy runs per family.", min=1)] = 160,
    parallel: Annotated[int | None, typer.Option(help="Runs at a time.", min=1)] = None,
    results: Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Where to write; RESULTS/detectors by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """How well the collapse detectors work: recall, precision, delay, false alarms. Or their events for your curves.

    Without --synthetic or --induced both are done: some 3,700 curves (ten minutes), then 40 runs of the embedded
    model (half an hour on two cores). Repeating the command continues the runs.

    Examples:

    `harness validate-detectors --synthetic`

    `harness validate-detectors --curves my-logs --json`
    """
    from harness.commands.validate_detectors import Options, default_parallel, run_validation

    options = Options(
        curves=curves, synthetic=synthetic, induced=induced, faults=faults, healthy=healthy, results=results, out=out,
        parallel=parallel or default_parallel(), as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_validation(options))
