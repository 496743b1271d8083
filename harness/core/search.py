"""Records of a hyper-parameter search: dimensions, the plan, and the file that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from harness.core.errors import UsageError
from harness.core.results import STUDY, Record, write_atomic
from harness.core.spec import ArmSpec, Spec, StudySpec

SEARCH = "search.json"
FINAL = "final"  # folder of the re-evaluation, a study like any other

SamplerName = Literal["tpe", "gp", "nsga2", "qmc", "random"]
PrunerName = Literal["none", "median", "halving"]
Objective = Literal["score", "instability", "sampled_tokens"]


class Dimension(Spec):
    """One hyper-parameter of a search: an interval, or a list of values."""

    path: str  # dotted path of an algorithm, or recipe.<field>
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    values: tuple[float | int | str, ...] = ()

    @model_validator(mode="after")
    def _bounded(self) -> Dimension:
        if self.values:
            if self.low is not None or self.high is not None or len(set(self.values)) < max(2, len(self.values)):
                raise ValueError(
                    f"{self.path} in {list(self.values)}: two or more different values, and no interval beside them"
                )
        elif self.low is None or self.high is None or not self.low < self.high:
            ends = f"from {self.low} to {self.high}"
            raise ValueError(f"{self.path} {ends} is no interval: low must be below high (one value: --set)")
        elif self.log and self.low <= 0:
            raise ValueError(f"{self.path} from {self.low} on a logarithmic scale: low must be above 0")
        return self

    def words(self) -> str:
        """`surrogate.high 0.05 to 0.5 (log)`."""
        if self.values:
            return f"{self.path} in {', '.join(map(str, self.values))}"
        return f"{self.path} {self.low:g} to {self.high:g}" + (" (log)" if self.log else "")


class Searched(Spec):
    """One algorithm of a search."""

    arm: ArmSpec  # the defaults, trial 0
    space: tuple[Dimension, ...]
    optuna_study: str
    folder: str  # of its trials, a study with one arm per trial


class SearchRecord(Record):
    """search.json: everything that decides what is run, written before the first trial."""

    name: str
    final: StudySpec  # the re-evaluation, its arms the defaults; the tuned ones join them
    searched: tuple[Searched, ...]
    tuning_seeds: tuple[int, ...]
    trials: int = Field(ge=1)  # per algorithm, the defaults included
    sampler: SamplerName
    sampler_seed: int = 0
    objectives: tuple[Objective, ...] = ("score",)
    top: int = Field(ge=1)  # configurations per algorithm that are run again on fresh seeds
    memory_gib: float | None = None  # limit of a run, a constraint like collapse
    kl_limit: float | None = None  # of the last measured KL to the reference policy, nats/token; a constraint as well
    pruner: PrunerName = "none"  # stops trials that lag behind, never before 30 % of the budget

    def same_search(self, other: SearchRecord) -> bool:
        """Whether the trials of both may stand together: all but their number and what is run again."""
        fields = {"trials", "top"}
        return self.model_dump(exclude=fields) == other.model_dump(exclude=fields)


def write_search(folder: Path, record: SearchRecord) -> None:
    """Writes search.json; UsageError where the folder holds another search."""
    if (folder / STUDY).exists():
        raise UsageError(
            f"search {record.name}", "a study of that name exists, and their runs must not be mixed", "another --name"
        )
    path = folder / SEARCH
    if path.exists() and not read_search(folder).same_search(record):
        raise UsageError(
            f"search {record.name}", "one of that name exists with another space or other settings",
            "another --name, or the settings it was begun with (only --trials and --top may grow)",
        )  # fmt: skip
    write_atomic(path, record.model_dump_json(indent=2) + "\n")


def read_search(folder: Path) -> SearchRecord:
    """The search.json of a folder."""
    if not (folder / SEARCH).exists():
        raise UsageError(f"{folder}: no {SEARCH}", "it is not the folder of a search", "a folder made by harness tune")
    return SearchRecord.model_validate_json((folder / SEARCH).read_text(encoding="utf-8"))
