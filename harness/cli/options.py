"""Options that several commands share, each with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AnswerField = Annotated[str | None, typer.Option(help="For data files: the field with the gold answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead of tables.")]
BudgetSeconds = Annotated[
    float | None, typer.Option(help="No further run once they have taken so long together; of a search, per algorithm.")
]
BudgetTokens = Annotated[
    int | None, typer.Option(help="No further run once they have sampled so many tokens; of a search, per algorithm.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; measured where not given.")]
Dimensions = Annotated[
    list[str] | None,
    typer.Option("--dim", help="[ARM:]path=low:high[:log] or path=a,b,c: replaces or adds; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost; run and write nothing.")]
KlLimit = Annotated[
    float | None, typer.Option(help="Limit of the KL to the reference policy, nats per token; a constraint.")
]
MLflow = Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Mirror to MLflow.")]
Model = Annotated[str | None, typer.Option(help="tiny, smollm2-135m, a Hugging Face id or a local path.")]
Name = Annotated[str | None, typer.Option(help="Name of the folder; derived from the settings by default.")]
Parallel = Annotated[int | None, typer.Option(help="Runs at a time.")]
Prompt = Annotated[str | None, typer.Option(help="For data files: e.g. '{Body} {Question}'.")]
Prune = Annotated[
    str, typer.Option(help="none, median or halving: stop trials that lag, never before 30 % of the budget.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder for studies and mlflow.db.")]
Reward = Annotated[
    str | None,
    typer.Option(
        help="my.py:score, a function (prompt, response, answer) -> float or dict of floats; model:<id or path>, a "
        "sequence classifier; judge:<url>, an OpenAI-compatible endpoint."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Budget of a run in rollout steps (instead of tokens).")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string, repeatable.")]
Storage = Annotated[
    str | None, typer.Option(help="sqlite:///FILE, journal:FILE or postgresql://...; sqlite in the study by default.")
]
Study = Annotated[Path, typer.Argument(help="A study folder, <results>/<study>.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
Task = Annotated[
    str | None,
    typer.Option(help="chain, reasoning_gym:<generator>, <file>.jsonl or .parquet, hf:<dataset id>; see `list tasks`."),
]
TaskParam = Annotated[list[str] | None, typer.Option("--task-param", "-t", help="name=value, repeatable.")]
Template = Annotated[str | None, typer.Option(help="auto, chat or plain.")]
Tokens = Annotated[int | None, typer.Option(help="Budget of a run in sampled tokens.")]
