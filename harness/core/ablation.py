"""Records of an ablation study: its design, which cell every arm is, and the file that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.core.errors import UsageError
from harness.core.results import Record, write_atomic
from harness.core.spec import ScheduleEntry, Spec

ABLATION = "ablation.json"
WITHOUT, WITH = "without", "with"  # levels of a component that is there or not

Kind = Literal["factorial", "fraction", "leave_one_out", "add_one_in", "path"]
KINDS: tuple[Kind, ...] = ("factorial", "fraction", "leave_one_out", "add_one_in", "path")


class Level(Spec):
    """One value of a factor: what it changes in the algorithm; a stress may change recipe and backend too."""

    name: str
    overrides: dict[str, Any] = Field(default_factory=dict)  # dotted path -> value; empty: as the algorithm has it
    recipe: dict[str, Any] = Field(default_factory=dict)
    schedule: tuple[ScheduleEntry, ...] = ()  # what changes in the course of the budget, where the factor is a stress
    backend: dict[str, Any] = Field(default_factory=dict)  # how it is computed, where the factor is a stress


class Factor(Spec):
    """One decision that is varied; its first level is the reference of every contrast."""

    name: str
    levels: tuple[Level, ...]


class Design(Spec):
    """Which cells of the product of the factors' levels are run.

    factorial: all; fraction: the half in which an even number of the last-level choices is missing; leave_one_out: all
    factors at their last level, and each alone at its first; add_one_in: all at their first, and each alone at its
    last; path: from all at their first to all at their last, one factor at a time in the order given. Stress factors
    cross every cell. `extra` arms stand beside the design and enter no contrast of it.
    """

    kind: Kind
    algorithm: str  # the arm or preset that the levels change
    factors: tuple[Factor, ...]
    stress: tuple[Factor, ...] = ()
    extra: dict[str, dict[str, Any]] = Field(default_factory=dict)  # name -> overrides


class Ablation(Record):
    """ablation.json: the design and the setting of every arm of study.yaml that belongs to it."""

    design: Design
    cells: dict[str, dict[str, str]]  # arm -> factor -> level, stress factors included
    extra: tuple[str, ...] = ()  # arms beside the design


TRIALS = "trials.json"


class Trials(Record):
    """trials.json: which Optuna trial stands behind every arm; the trials name their runs in turn."""

    storage: str
    study: str  # name of the Optuna study
    trials: dict[str, int]  # arm -> trial number


def write_ablation(study: Path, record: Ablation) -> None:
    """Writes ablation.json; UsageError where the folder holds another design."""
    path = study / ABLATION
    if path.exists() and read_ablation(study) != record:
        raise UsageError(
            f"study {study.name}", "it exists with another design", "another --name, or the design it was begun with"
        )
    write_atomic(path, record.model_dump_json(indent=2) + "\n")


def read_ablation(study: Path) -> Ablation:
    """The ablation.json of a study folder."""
    return Ablation.model_validate_json((study / ABLATION).read_text(encoding="utf-8"))
