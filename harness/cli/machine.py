"""What there is, what it costs, and the engine server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import AsJson, Results


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="algorithms, arms, parts, tasks, models, metrics, presets, ablations or studies.")
    ],
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
def serve(
    model: Annotated[str, typer.Option(help="tiny, smollm2-135m, a Hugging Face id or a local path.")],
    dtype: Annotated[str, typer.Option(help="Of the engine: float32 or bfloat16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all processors by default.")] = None,
    kv_cache_gib: Annotated[float, typer.Option(help="Memory of the KV cache on CPU.")] = 1.0,
    gpu_memory: Annotated[float, typer.Option(help="Share of a GPU's memory for weights and KV cache.")] = 0.9,
    host: Annotated[str, typer.Option(help="Address to listen at; its requests are not authenticated.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
) -> None:
    """Start a vLLM engine server for runs whose trainer is another process or machine.

    It has no weights of its own: a run sends them before its first rollout and after every update. One run at a time.

    Example: `harness serve --model smollm2-135m --dtype bfloat16 --port 8000`, and elsewhere
    `harness compare --model smollm2-135m --sampler vllm -s backend.engine.dtype=bfloat16
    -s backend.engine.server=http://127.0.0.1:8000`
    """
    from harness.commands.engine import run_serve

    raise typer.Exit(run_serve(model, dtype, device, threads, kv_cache_gib, gpu_memory, host, port))


@app.command()
def bench(
    only: Annotated[
        list[str] | None, typer.Option(help="A section, a name, or a pattern such as 'update-*'; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often everything is measured, A B A B.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Measured steps per process; 2 by default.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps before them; 1 by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Append every result to this file, and go on from what it holds.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Name what would be measured, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Speed and memory on this machine: this project, TRL where it is installed, switches, algorithms, scaling.

    Everything takes more than an hour on two cores; what cannot run here is named with its reason.

    Examples:

    `harness bench --only tiny`

    `harness bench --only 'update-*' --rounds 3`

    `harness bench --only grading` (answers graded per second; seconds)

    `harness bench --only controller` (what a search costs beside its runs; a minute)
    """
    from harness.commands.bench import BenchOptions, run_bench

    options = BenchOptions(
        only=tuple(only or ()), rounds=rounds, steps=steps, warm_up=warm_up, threads=threads, markdown=markdown,
        keep=keep, listing=listing, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_bench(options))
