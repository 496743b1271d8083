"""Benchmark scores of a run's policy and of its base model: benchmarks.json in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.core.results import QuestionScore, Record, to_json, write_atomic

BENCHMARKS = "benchmarks.json"


class Scored(BaseModel):
    """A number with its interval, as `harness.stats` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    level: float = 0.95
    estimator: str = ""
    note: str | None = None


class BenchmarkRow(BaseModel):
    """One model on one benchmark. Every number is counted again from the logged responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    role: Literal["model", "base", "run"]
    checkpoint: str | None = None  # of a run
    step: int | None = None  # of that checkpoint; 0 for a base model
    benchmark: str
    questions: tuple[QuestionScore, ...]
    samples: int  # k of avg@k and pass@k
    lm_eval: float  # the figure of lm-evaluation-harness itself
    avg_at_k: Scored
    pass_at_k: Scored
    rating: Scored | None = None  # Elo scale, where the problems have ratings
    cut_off: float  # share of responses that fill the limit, by counting their tokens again
    failed: int  # responses without a verdict
    settings: dict[str, Any]  # how responses were made, and the parameters of the task
    data_sha256: str
    template_sha256: str  # style, chat template, system text, stop strings
    isolation: str | None = None  # what kept programs of the model from this machine
    outputs: str  # file of the responses, below <results>/eval


class BenchmarkRecord(Record):
    """benchmarks.json, and the summary of an evaluation."""

    rows: tuple[BenchmarkRow, ...]


def read_benchmarks(run: Path) -> tuple[BenchmarkRow, ...]:
    """What was scored of a run; nothing where there is no file."""
    file = run / BENCHMARKS
    if not file.exists():
        return ()
    return BenchmarkRecord.model_validate_json(file.read_text(encoding="utf-8")).rows


def add_benchmarks(run: Path, rows: Sequence[BenchmarkRow]) -> None:
    """Adds rows to a run's file; the same model on the same benchmark in the same way is replaced."""
    kept = {_key(row): row for row in (*read_benchmarks(run), *rows)}
    write_atomic(run / BENCHMARKS, to_json(BenchmarkRecord(rows=tuple(kept.values()))) + "\n")


def _key(row: BenchmarkRow) -> tuple[str, ...]:
    setting = str(sorted(row.settings.items()))
    return row.role, row.model, row.benchmark, row.data_sha256, str(row.samples), setting
