"""The application that every command joins."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Which RL algorithm, and which component of it, for your model and task: with what confidence, at what cost.",
)
