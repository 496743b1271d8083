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
    """The command line as given; what is left out is the preset's."""

    preset: str = "quick"
    task: str | None = None
    task_params: tuple[str, ...] = ()
    prompt: str | None = None
    answer_field: str | None = None
    reward: str | None = None
    system: str | None = None
    template: str | None = None
    stop: tuple[str, ...] = ()
    model: str | None = None
    algorithms: str | None = None
    controls: str | None = None
    roster: str | None = None
    seeds: str | None = None
    steps: int | None = None
    tokens: int | None = None
    sets: tuple[str, ...] = ()
    parallel: int | None = None
    sampler: str | None = None
    threads: int | None = None
    dtype: str | None = None
    device: str | None = None
    results: Path = Path("results")
    name: str | None = None
    run_equivalent: bool = False
    mlflow: bool = True
    dry_run: bool = False
    as_json: bool = False
    two_stage: bool = False


def runs_at_once(spec: StudySpec | RunSpec, measured: Mapping[str, Any]) -> int:
    """One run per GPU or server; on CPU as many as there are processors for their threads, but one of a real model."""
    if spec.backend.engine.server is not None:
        return 1
    if measured.get("num_gpus"):
        return int(measured["num_gpus"])
    return max(1, available_cpus() // spec.backend.threads) if spec.model.name in EMBEDDED else 1
