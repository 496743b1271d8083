"""What a study declared before its first run: `study.lock`. What lies outside of it is exploratory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.core.errors import UsageError
from harness.core.results import write_atomic
from harness.core.spec import Budget, StudySpec

LOCK = "study.lock"
SINGLE, POCOCK = 0.05, 0.0294  # family-wise level of one look, and of each of two (Pocock)
MIN_FIRST = 7  # an exact test of fewer pairs cannot reach Pocock's level
METRIC = "score on the test split at the end of the budget, collapsed runs included"
FAMILY = "every arm against the reference of its bracket and roster, corrected together"
TEST = "max-|t| over within-seed permutations from ten common seeds, below it paired t with Holm"


class Extension(BaseModel):
    """Seeds added after the declaration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    seeds: tuple[int, ...]


class Declaration(BaseModel):
    """study.lock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    created: str  # UTC, before the first run
    study_hash: str  # of study.yaml as declared
    primary_metric: str = METRIC
    family: str = FAMILY
    test: str = TEST
    delta: float  # smallest difference of interest
    alpha: float  # family-wise level of every look
    budget: Budget
    reference_arm: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    stages: tuple[int, ...]  # numbers of seeds per arm at which the study may be judged
    extensions: tuple[Extension, ...] = ()


def declare(spec: StudySpec, *, two_stage: bool = False) -> Declaration:
    """The declaration of a study about to begin; two stages look at n and at 2 n seeds, at Pocock's level each."""
    n = len(spec.seeds)
    if two_stage and n < MIN_FIRST:
        raise UsageError(
            f"--two-stage with {n} seeds",
            f"each of the two looks is at level {POCOCK}, which no exact test of fewer than {MIN_FIRST} pairs reaches",
            f"--seeds {MIN_FIRST}, or one stage",
        )
    return Declaration(
        created=_now(), study_hash=spec.hash, delta=spec.delta, alpha=POCOCK if two_stage else SINGLE,
        budget=spec.budget, reference_arm=spec.reference_arm, arms=tuple(a.name for a in spec.arms), seeds=spec.seeds,
        stages=(n, 2 * n) if two_stage else (n,),
    )  # fmt: skip


def extended(lock: Declaration, seeds: Sequence[int]) -> Declaration:
    """The same declaration with an extension noted."""
    more = Extension(created=_now(), seeds=tuple(seeds))
    return lock.model_copy(update={"extensions": (*lock.extensions, more)})


def write_lock(folder: Path, lock: Declaration) -> None:
    """Writes study.lock."""
    write_atomic(folder / LOCK, json.dumps(lock.model_dump(mode="json"), indent=1) + "\n")


def read_lock(folder: Path) -> Declaration | None:
    """The declaration of a study, or None where it made none."""
    path = folder / LOCK
    if not path.exists():
        return None
    try:
        return Declaration.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UsageError(
            f"{path}: {error.errors()[0]['msg']}",
            "the declaration was written before the first run and must not be edited",
            "restore it, or remove it; the report then calls every comparison exploratory",
        ) from None


def deviations(lock: Declaration, spec: StudySpec, first_start: str | None) -> list[str]:
    """How a study departs from its declaration; empty where it keeps to it."""
    found = []
    if spec.delta != lock.delta:
        found.append(f"smallest difference of interest {spec.delta:g}, declared {lock.delta:g}")
    if spec.budget != lock.budget:
        found.append("another budget than declared")
    if spec.reference_arm != lock.reference_arm:
        found.append(f"reference {spec.reference_arm}, declared {lock.reference_arm}")
    arms = [a.name for a in spec.arms]
    found += [f"arm {name} was not declared" for name in arms if name not in lock.arms]
    found += [f"arm {name} was declared and is not in the study" for name in lock.arms if name not in arms]
    if len(spec.seeds) not in lock.stages:
        found.append(f"{len(spec.seeds)} seeds, declared {' then '.join(map(str, lock.stages))}")
    if first_start is not None and first_start < lock.created:
        found.append(f"a run began at {first_start}, before the declaration of {lock.created}")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
