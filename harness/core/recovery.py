"""Records of a recovery study: recovery.yaml (what is tried) and report/recovery.json (what came of it)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.core.results import Provenance, Record
from harness.core.spec import Spec

RECOVERY = "recovery.yaml"

StartPoint = Literal["last_healthy", "half", "collapsed"]
Verdict = Literal["recovered", "partial", "recurred", "not recovered"]
VERDICTS: tuple[Verdict, ...] = ("recovered", "partial", "recurred", "not recovered")


class EpisodeSpec(Spec):
    """One collapse, with everything that attempts to recover from it are judged by."""

    run: str  # path of the collapsed run's folder
    arm: str
    seed: int
    type: str  # of the collapse event, or `declared`
    onset: int = Field(ge=1)  # first step at which something was wrong
    confirm: int  # step at which that was certain
    base: float  # validation score before training
    best: float  # best validation score up to the onset
    tolerance: float  # max(0.02, its standard error)
    checkpoints: dict[StartPoint, int]  # step by start point
    steps: int = Field(ge=1)  # rollout steps of every attempt
    survive: int = Field(ge=0)  # steps past the onset that an attempt has to last
    in_force: tuple[str, ...] = ()  # changes by the run's schedule that were in force at the onset, and stay so


class AttemptSpec(Spec):
    """One restart."""

    run_id: str
    episode: int  # index into `episodes`
    start: StartPoint
    remedy: str
    seed: int


class SkippedAttempt(Spec):
    """A remedy that cannot be applied to an episode, and why."""

    episode: int
    remedy: str
    why: str


class RecoverySpec(Spec):
    """recovery.yaml: a planned recovery study."""

    schema_version: Literal[1] = 1
    name: str
    episodes: tuple[EpisodeSpec, ...]
    attempts: tuple[AttemptSpec, ...]
    skipped: tuple[SkippedAttempt, ...] = ()
    remedies: dict[str, str]  # name -> what it is, in words
    seeds: tuple[int, ...]


class AttemptRecord(AttemptSpec):
    """What came of one restart."""

    verdict: Verdict | None  # None: not finished, or failed
    why: str
    recovered_after: int | None = None  # steps from the restart to the first of the evaluations that count
    steps: int | None = None  # rollout steps done since the restart
    score: float | None = None  # validation score, mean of the last three evaluations
    failed: bool = False  # the infrastructure's fault: counted nowhere


class Share(BaseModel):
    """k of n with its Jeffreys interval; null where n is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None
    level: float = 0.95


class RemedyRecord(BaseModel):
    """One row of the table: all attempts with one remedy from one start point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: StartPoint
    remedy: str
    attempts: int  # judged
    verdicts: dict[Verdict, int]
    unfinished: int
    failed: int
    episodes: Share  # episodes of which more than half of the judged attempts recovered
    median_steps: float | None  # to recovery, Kaplan-Meier; null where half or fewer recovered
    score: float | None  # mean over attempts of the last three evaluations


class RecoveryReport(Record):
    """report/recovery.json."""

    spec: RecoverySpec
    attempts: tuple[AttemptRecord, ...]
    rows: tuple[RemedyRecord, ...]
    answer: tuple[str, ...]  # sentences made by rule
    provenance: Provenance
