"""The command line of `harness compare` as data, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.spec import RunSpec, StudySpec
from harness.study.measure import EMBEDDED, available_cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """The command line as given."""

    preset: str
    task: str | None
    task_params: tuple[str, ...]
    prompt: str | None
    answer_field: str | None
    reward: str | None
    system: str | None
    template: str | None
    stop: tuple[str, ...]
    model: str | None
    algorithms: str | None
    controls: str | None
    roster: str | None
    seeds: str | None
    steps: int | None
    tokens: int | None
    sets: tuple[str, ...]
    parallel: int | None
    sampler: str | None
    threads: int | None
    dtype: str | None
    device: str | None
    results: Path
    name: str | None
    run_equivalent: bool
    mlflow: bool
    dry_run: bool
    as_json: bool
    two_stage: bool = False


def runs_at_once(spec: StudySpec | RunSpec, measured: Mapping[str, Any]) -> int:
    """One run per GPU or server; on CPU as many as there are processors for their threads, but one of a real model."""
    if spec.backend.engine.server is not None:
        return 1
    if measured.get("num_gpus"):
        return int(measured["num_gpus"])
    return max(1, available_cpus() // spec.backend.threads) if spec.model.name in EMBEDDED else 1
