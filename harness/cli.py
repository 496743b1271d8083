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
    task: Annotated[
        str | None,
        typer.Option(
            help="chain, reasoning_gym:<generator>, <file>.jsonl or .parquet, hf:<dataset id>; see `list tasks`."
        ),
    ] = None,
    task_param: Annotated[list[str] | None, typer.Option("--task-param", "-t", help="name=value, repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="For .jsonl: e.g. '{Body} {Question}'.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="For .jsonl: the field with the gold answer.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="my.py:score, a function (prompt, response, answer) -> float or dict of floats.")
    ] = None,
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
    sampler: Annotated[
        str | None, typer.Option(help="transformers, or vllm; `-s backend.engine.KEY=VALUE` sets its engine up.")
    ] = None,
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

    `harness compare --task my.jsonl --reward my.py:score -t reward_range=-1,1 -t reward_seconds=5`
    """
    from harness.commands.compare import run_compare
    from harness.commands.options import CompareOptions

    options = CompareOptions(
        preset=preset, task=task, task_params=tuple(task_param or ()), prompt=prompt, answer_field=answer_field,
        reward=reward, system=system, template=template, stop=tuple(stop or ()), model=model, algorithms=algorithms,
        controls=controls, roster=roster, seeds=seeds, steps=steps, tokens=tokens, sets=tuple(sets or ()),
        parallel=parallel, sampler=sampler, threads=threads, dtype=dtype, device=device, results=results, name=name,
        run_equivalent=run_equivalent, mlflow=mlflow, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_compare(options))


@app.command()
def probe(
    task: Annotated[str | None, typer.Option(help="As for compare.")] = None,
    task_param: Annotated[list[str] | None, typer.Option("--task-param", "-t", help="name=value, repeatable.")] = None,
    prompt: Annotated[str | None, typer.Option(help="For data files: e.g. '{Body} {Question}'.")] = None,
    answer_field: Annotated[str | None, typer.Option(help="For data files: the field with the gold answer.")] = None,
    reward: Annotated[str | None, typer.Option(help="my.py:score, as for compare.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="auto, chat or plain.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string, repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, smollm2-135m, a Hugging Face id or a local path.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    prompts: Annotated[int, typer.Option(help="Prompts of the split, from its first on.")] = 100,
    samples: Annotated[int, typer.Option(help="Responses per prompt.")] = 8,
    keep: Annotated[str, typer.Option(help="Pass rates that the written prompt file holds.")] = "0.1,0.9",
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="recipe.max_new_tokens=512, recipe.temperature=0.8, ...")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="transformers or vllm.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
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
        controls="none", roster=None, seeds="1", steps=1, tokens=None, sets=tuple(sets or ()), parallel=None,
        sampler=sampler, threads=threads, dtype=dtype, device=device, results=results, name=None,
        run_equivalent=False, mlflow=False, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_probe(ProbeOptions(
        study=study, split=split, prompts=prompts, samples=samples, keep=keep, out=out
    )))  # fmt: skip


@app.command("eval")
def eval_(
    subject: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, model folder or id.")],
    data: Annotated[Path, typer.Option(help="Folder with <benchmark>_test.jsonl, or one file.")],
    benchmarks: Annotated[str, typer.Option(help="Comma-separated: gsm8k, aime24, math-500, svamp.")] = "gsm8k",
    checkpoint: Annotated[str, typer.Option(help="Of a run: last, best, last_healthy, ..., or a step.")] = "last",
    engine: Annotated[str, typer.Option(help="hf or vllm.")] = "hf",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    samples: Annotated[int, typer.Option(min=1, help="Responses per question: k of avg@k and pass@k.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="The first questions only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Benchmark scores on the real lm-evaluation-harness, without a network; a run next to its base model.

    Every response is kept, and the score is counted again over them: avg@k and pass@k, intervals over questions.
    Repeating the command continues it.

    Example: `harness eval smollm2-135m --benchmarks gsm8k,aime24 --data my-data --samples 4 --engine vllm`
    """
    from harness.commands.eval import EvalOptions, run_eval
    from harness.core.errors import UsageError
    from harness.evaluate.lm_eval import Generation

    if engine not in ("hf", "vllm"):
        raise UsageError(f"--engine {engine}", "no such engine", "hf or vllm")
    how = Generation(
        engine="vllm" if engine == "vllm" else "hf", dtype=dtype, device=device, samples=samples,
        temperature=temperature, max_new_tokens=max_new_tokens, limit=limit, seed=seed,
    )  # fmt: skip
    raise typer.Exit(run_eval(EvalOptions(
        subject=subject, benchmarks=benchmarks, data=data, checkpoint=checkpoint, how=how, results=results,
        as_json=as_json,
    )))  # fmt: skip


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
    name: Annotated[str | None, typer.Option(help="Name of the folder; derived from the choices by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost.")] = False,
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
def bench(
    only: Annotated[
        list[str] | None, typer.Option(help="A section, a name, or a pattern such as 'update-*'; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often everything is measured, A B A B.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Measured steps per process; 2 by default.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps before them; 1 by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables to this file.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Name what would be measured, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Speed and memory on this machine: this project, TRL where it is installed, switches, algorithms, scaling.

    Everything takes more than an hour on two cores; what cannot run here is named with its reason.

    Examples:

    `harness bench --only tiny`

    `harness bench --only 'update-*' --rounds 3`

    `harness bench --only grading` (answers graded per second; seconds)
    """
    from harness.commands.bench import BenchOptions, run_bench

    options = BenchOptions(
        only=tuple(only or ()), rounds=rounds, steps=steps, warm_up=warm_up, threads=threads, markdown=markdown,
        listing=listing, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(run_bench(options))


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


if __name__ == "__main__":
    main()
