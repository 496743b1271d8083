"""Benchmark scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import app
from harness.cli.options import AsJson, Results


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
