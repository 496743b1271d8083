"""Benchmark scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import AsJson, MLflow, Results, Stop, System, TaskParam, Template


@app.command("eval")
def eval_(
    subject: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, a study folder, a model folder or an id.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Folder with <benchmark>_test.jsonl, or one file; humaneval needs none.")
    ] = None,
    benchmarks: Annotated[
        str,
        typer.Option(
            "--benchmarks",
            "-b",
            help="Comma-separated: gsm8k, aime24, math-500, svamp, humaneval, mbpp, livecodebench, codeforces.",
        ),
    ] = "gsm8k",
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Responses per question, k of avg@k and pass@k; 4 for aime24, 8 for contests, else 1."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="The first questions only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    task_param: TaskParam = None,
    checkpoint: Annotated[str, typer.Option(help="Of a run: last, best, last_healthy, ..., or a step.")] = "last",
    system: System = None,
    template: Template = None,
    stop: Stop = None,
    engine: Annotated[str, typer.Option(help="hf or vllm.")] = "hf",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is a GPU.")] = None,
    results: Results = Path("results"),
    mlflow: MLflow = True,
    as_json: AsJson = False,
) -> None:
    """Benchmark scores on the real lm-evaluation-harness, without a network: a run, or every run of a study, next to
    its base model.

    Responses are graded by the tasks that train: math-verify, or programs in the sandbox. Every one is kept, and the
    score is counted again over them: avg@k and pass@k, intervals over questions. Prompts are those of training.
    Repeating the command continues it.

    Examples:

    `harness eval smollm2-135m -b gsm8k,aime24 --data my-data --engine vllm`

    `harness eval results/my-study --data my-data -b livecodebench -t since=2025-01-01 -t before=2025-05-01`
    """
    from harness.commands.engine import device_of
    from harness.commands.eval import EvalOptions, run_eval
    from harness.core.errors import UsageError
    from harness.core.spec import TemplateSpec, parse
    from harness.evaluate.lm_eval import Generation

    if engine not in ("hf", "vllm"):
        raise UsageError(f"--engine {engine}", "no such engine", "hf or vllm")
    given = {"style": template, "system": system, "stop": stop}
    named = {key: value for key, value in given.items() if value}
    how = Generation(
        engine="vllm" if engine == "vllm" else "hf", dtype=dtype, device=device_of(device), temperature=temperature,
        max_new_tokens=max_new_tokens, limit=limit, seed=seed,
    )  # fmt: skip
    raise typer.Exit(run_eval(EvalOptions(
        subject=subject, benchmarks=benchmarks, data=data, checkpoint=checkpoint, samples=samples, how=how,
        template=parse(TemplateSpec, named, "the command line") if named else None,
        task_params=tuple(task_param or ()), results=results, mlflow=mlflow, as_json=as_json,
    )))  # fmt: skip
