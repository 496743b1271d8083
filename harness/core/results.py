"""The run folder: file names, record types, atomic writing and reading. The truth every other part reads.

No torch and no plotting here; results/README.md describes the same in prose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from harness.core.columns import Questions, StepColumns, columns_of, open_keys, read_columns
from harness.core.errors import InfrastructureError, UsageError
from harness.core.metrics import BY_LENGTH
from harness.core.spec import RunSpec, StudySpec, parse

SCHEMA_VERSION = 1

SPEC, RESULT, VALIDITY, STEPS, EVENTS, EVALS, SAMPLES = (
    "spec.json",
    "result.json",
    "validity.json",
    "steps.jsonl",
    "events.jsonl",
    "evals.jsonl",
    "samples.jsonl",
)
STUDY = "study.yaml"
COMPONENT = "reward/component/"  # columns of steps.jsonl: parts of the task's reward, by name
RUNS, ROLLOUTS, CHECKPOINTS, REPORT = "runs", "rollouts", "checkpoints", "report"

RunStatus = Literal["completed", "collapsed", "no_learning", "infra_failed"]
Validity = Literal["PASS", "WARN", "INVALID"]
Severity = Literal["FATAL", "COLLAPSE", "DEGRADED", "WARN"]
COLLAPSED: tuple[Severity, ...] = ("FATAL", "COLLAPSE")  # what counts as a collapse


class Record(BaseModel):
    """Base of the records in a run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1


class QuestionScore(BaseModel):
    """One question of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str  # the prompt's id
    n: int  # samples drawn
    correct: int  # of which correct


class EvalRecord(Record):
    """One held-out evaluation; a line of evals.jsonl."""

    step: int  # rollout steps done before it
    sampled_tokens_cum: int
    split: Literal["validation", "test"]
    task: str
    samples: int  # k of avg@k
    score: float  # avg@k: mean over questions of correct / n
    reward_mean: float  # task reward
    length_mean: float | None  # response tokens; None where the run was made elsewhere and does not say
    truncated: float | None  # share cut at the limit; None as above
    components: dict[str, float] = Field(default_factory=dict)  # mean of each named part of the task reward
    questions: tuple[QuestionScore, ...]  # left out by the light reader; `asked` has them either way

    _asked: Questions | None = PrivateAttr(None)

    @property
    def asked(self) -> Questions:
        """The questions as columns."""
        return self._asked or Questions.of((q.id, q.n, q.correct) for q in self.questions)


class SampleRecord(Record):
    """One response kept for reading; a line of samples.jsonl."""

    step: int
    prompt_id: str
    sample: int
    prompt: str  # rendered, as the model saw it
    response: str
    tokens: int
    reward: float
    correct: bool
    extracted: str | None
    why: str
    advantage: float | None  # mean over its tokens
    split: Literal["train", "validation", "test"] = "train"


class EventRecord(Record):
    """A collapse event; a line of events.jsonl. Written by the detectors."""

    type: str
    severity: Severity  # the highest so far
    onset_step: int  # where a change point puts it, at the latest the first flagged step
    confirm_step: int
    clear_step: int | None = None
    peak_value: float | None = None  # worst value of the evidence
    baseline_value: float | None = None  # what it is compared with
    rule_id: str
    rule_version: int = 1
    checkpoint_last_healthy: str | None = None
    sampled_tokens_at_onset: int | None = None
    metrics_window: dict[str, list[float | None]] = Field(default_factory=dict)  # `step`, then metrics; +-50 steps
    flagged_step: int | None = None  # first flagged step of the confirming window
    evidence: str | None = None  # the metric of peak_value and baseline_value
    detail: str | None = None  # which kind of the event, e.g. solved or stuck
    collapse_step: int | None = None  # when an event of lower severity became a collapse by the held-out score
    sample_steps: tuple[int, ...] = ()  # steps whose offending responses stand in samples.jsonl


class Finding(BaseModel):
    """What one check of the set-up found. Never about what an algorithm did after its first update."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str  # name of the check, e.g. "verifier"
    level: Validity
    measured: str
    limit: str  # what was allowed
    why: str  # what the result means
    advice: str = ""  # what to do; empty where nothing is to be done
    values: dict[str, float | None] = Field(default_factory=dict)  # the measurements as numbers
    runs: tuple[str, ...] = ()  # run ids, for a check across runs

    @property
    def reason(self) -> str:
        """One line for a result, a log or a table."""
        return f"{self.check}: {self.why} Measured: {self.measured} (limit: {self.limit}). {self.advice}".rstrip()


class ValidityRecord(Record):
    """validity.json: the findings so far, rewritten whenever there is a new one."""

    run_id: str
    validity: Validity
    findings: tuple[Finding, ...]


class Engine(BaseModel):
    """The rollout engine, a recorded factor: runs of different engines are never compared silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str | None  # of the package, where it is known
    dtype: str  # precision in which it samples
    exact_repeat: bool  # the same keys give the same tokens, so arms share their sampling noise


class Provenance(BaseModel):
    """Where a run came from."""

    model_config = ConfigDict(extra="forbid")

    harness_version: str
    numerics_version: int
    git_commit: str | None = None
    git_dirty: bool | None = None
    python: str
    packages: dict[str, str]
    platform: str
    cpu: str
    num_cpus: int
    gpu: str | None = None
    command: list[str] = Field(default_factory=list)
    model_sha256: str | None = None  # of the initial weights
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    engine: Engine | None = None
    started: str
    finished: str | None = None


class RunResult(Record):
    """result.json: how the run ended."""

    run_id: str
    status: RunStatus
    validity: Validity = "PASS"
    validity_reasons: tuple[str, ...] = ()  # one line per finding that is not PASS
    validity_findings: tuple[Finding, ...] = ()  # every check of the run's set-up
    error: str | None = None  # for infra_failed
    steps: int
    optimizer_steps: int
    sampled_tokens: int  # discarded responses included
    trained_tokens: int
    wallclock_s: float
    base_score: float | None  # test split, before training
    final_score: float | None  # test split, at the end of the budget
    best_validation: float | None
    peak_memory_mib: float | None  # of the run's process
    memory_after_import_mib: float | None
    parameters: int
    algorithm_resolved: dict[str, Any]  # every slot
    deviations: tuple[str, ...]  # "path: preset value -> value"
    calibration: dict[str, float] = Field(default_factory=dict)
    resumes: int = 0  # how often the run was continued
    isolation: str | None = None  # what kept programs of the policy from this machine, where the task ran them
    provenance: Provenance


def to_json(record: BaseModel) -> str:
    """One line of JSON; non-finite numbers become null."""
    return dumps(record.model_dump(mode="json"))


def dumps(data: Any) -> str:
    """JSON without NaN or infinities, which no standard reader accepts."""
    return json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def write_atomic(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InfrastructureError(
            f"cannot write {path}: {error.strerror}; free space or choose another --results"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Appends one line and hands it to the operating system."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise InfrastructureError(f"cannot append to {path}: {error.strerror}; the run is resumable") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a torn last line (an interrupted write) is left out."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")  # bytes: a torn line may end inside a character
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            if number >= len(lines) - 2:
                return
            raise InfrastructureError(f"{path}: line {number + 1} is not JSON, and it is not the last one") from None


def truncate_after(path: Path, step: int) -> None:
    """Drops records later than `step`, and a torn last line; used before a run continues from a checkpoint."""
    if path.exists():
        kept = [r for r in read_lines(path) if r.get("step", r.get("confirm_step", step)) <= step]
        write_atomic(path, "".join(dumps(r) + "\n" for r in kept))


M = TypeVar("M", bound=BaseModel)
FolderState = Literal["planned", "started", "finished"]  # spec only; rows, but no result; result written


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Everything of a run folder that a report reads."""

    path: Path
    spec: RunSpec
    result: RunResult | None  # None until the run has ended
    steps: Sequence[dict[str, Any]]  # rows of steps.jsonl; see harness.core.metrics
    evals: list[EvalRecord]
    events: list[EventRecord]
    samples: list[SampleRecord]
    state: FolderState

    @property
    def run_id(self) -> str:
        """Name of the folder."""
        return self.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFolder:
    """A study: its spec and the run folder of every (arm, seed) found."""

    path: Path
    spec: StudySpec
    runs: tuple[RunFolder, ...]  # in the order of the spec: arms, then seeds
    missing: tuple[tuple[str, int], ...]  # (arm, seed) of the spec without a readable run folder
    unlisted: tuple[str, ...]  # folders under runs/ that the spec does not ask for, or that a newer run replaces
    torn: tuple[str, ...] = ()  # folders under runs/ without spec.json: cut off while they were made

    def of(self, arm: str) -> tuple[RunFolder, ...]:
        """The runs of one arm, by seed."""
        return tuple(run for run in self.runs if run.spec.arm == arm)


def read_run(path: str | Path, columns: Sequence[str] | None = None) -> RunFolder:
    """Reads a run folder, also one that is still being written.

    With `columns` only these of the steps are kept, and questions as columns: what a report of many runs needs.
    """
    folder = Path(path)
    if not (folder / SPEC).exists():
        raise UsageError(
            f"{folder}: no {SPEC}",
            "every run folder begins with it, so this is no run folder or it was cut off while being made",
            "remove the folder and repeat the command that made it; or name a folder under <results>/<study>/runs",
        )
    spec = _read_model(folder / SPEC, RunSpec)
    result = _read_model(folder / RESULT, RunResult) if (folder / RESULT).exists() else None
    steps = read_steps(folder / STEPS) if columns is None else _some_steps(folder / STEPS, columns)
    return RunFolder(
        path=folder,
        spec=spec,
        result=result,
        steps=steps,
        evals=_read_records(folder / EVALS, EvalRecord) if columns is None else _light_evals(folder / EVALS),
        events=_read_records(folder / EVENTS, EventRecord),
        samples=_read_records(folder / SAMPLES, SampleRecord),
        state="finished" if result else "started" if steps else "planned",
    )


def read_study_spec(path: str | Path) -> StudySpec:
    """The study.yaml of a study folder."""
    file = Path(path) / STUDY
    if not file.exists():
        raise UsageError(
            f"{path}: no {STUDY}", "it is not a study folder", "name a folder <results>/<study>, or run a study first"
        )
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: not YAML", str(error).replace("\n", " "), "correct or remove the file") from None
    return _validate(file, StudySpec, data)


def write_study_spec(path: Path, spec: StudySpec) -> None:
    """Writes study.yaml."""
    write_atomic(path / STUDY, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def read_study(path: str | Path, columns: Sequence[str] | None = None) -> StudyFolder:
    """Reads a study folder with all its runs; `columns` as for `read_run`."""
    folder = Path(path)
    spec = read_study_spec(folder)
    found_here = sorted(p.name for p in (folder / RUNS).glob("*") if p.is_dir())
    names = [name for name in found_here if (folder / RUNS / name / SPEC).exists()]
    specs = {name: _read_model(folder / RUNS / name / SPEC, RunSpec) for name in names}
    chosen: dict[tuple[str, int], str] = {}
    for arm in spec.arms:
        for seed in spec.seeds:
            found = [name for name, run in specs.items() if (run.arm, run.seed) == (arm.name, seed)]
            if found:
                chosen[arm.name, seed] = max(found, key=lambda name: _fit(spec, specs[name], folder / RUNS / name))
    return StudyFolder(
        path=folder,
        spec=spec,
        runs=tuple(read_run(folder / RUNS / name, columns) for name in chosen.values()),
        missing=tuple((a.name, s) for a in spec.arms for s in spec.seeds if (a.name, s) not in chosen),
        unlisted=tuple(name for name in names if name not in chosen.values()),
        torn=tuple(name for name in found_here if name not in names),
    )


def _fit(study: StudySpec, run: RunSpec, folder: Path) -> tuple[int, int, bool, str]:
    """Orders run folders of the same arm and seed: most like the study's spec, newest numerics, finished."""
    same = ("task", "model", "recipe", "budget", "eval", "backend", "schedule")
    alike = sum(getattr(study, field) == getattr(run, field) for field in same)
    return alike, run.numerics_version, (folder / RESULT).exists(), folder.name


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Rows of steps.jsonl; a key that an older row lacks means null."""
    rows = list(read_lines(path))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UsageError(f"{path}: row {number} has no whole-number step", "steps order the rows", "remove the row")
        _check_version(f"{path}: row {number}", row)
    return rows


def _some_steps(path: Path, columns: Sequence[str]) -> StepColumns:
    """These columns, the parts of the task's reward and the ratio by response length, whose names the run decides."""
    columns = [*columns, *open_keys(path, (COMPONENT, BY_LENGTH))]
    found = read_columns(path, columns, SCHEMA_VERSION)
    return columns_of(read_steps(path), columns) if found is None else found


def _light_evals(path: Path) -> list[EvalRecord]:
    """Evaluations with their questions as columns; where these are not as they should be, the full reader says so."""
    found = []
    for number, row in enumerate(read_lines(path), start=1):
        asked = row.get("questions") if isinstance(row, dict) else None
        try:
            table = Questions.of((q["id"], q["n"], q["correct"]) for q in asked or ())
        except (KeyError, TypeError, OverflowError):
            return _read_records(path, EvalRecord)
        if asked is None or any(len(q) != 3 for q in asked):
            return _read_records(path, EvalRecord)
        record = _validate(f"{path}: row {number}", EvalRecord, {**row, "questions": ()})
        record._asked = table
        found.append(record)
    return found


def _read_records(path: Path, model: type[M]) -> list[M]:
    return [_validate(f"{path}: row {n}", model, row) for n, row in enumerate(read_lines(path), start=1)]


def _read_model(path: Path, model: type[M]) -> M:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}: not JSON ({error.msg} in line {error.lineno})",
            "the harness writes this file in one piece, so something else changed or cut it",
            "remove it and repeat the command that made it; the run continues from its last checkpoint",
        ) from None
    return _validate(path, model, data)


def _validate(where: str | Path, model: type[M], data: Any) -> M:
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: {type(data).__name__}", f"a {model.__name__} is a mapping", "correct the file")
    _check_version(where, data)
    try:
        return model.model_validate(data)
    except ValidationError:
        parsed: M = parse(model, data, str(where))  # raises with the key and near matches
        return parsed


def _check_version(where: str | Path, data: Mapping[str, Any]) -> None:
    version = data.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{where}: schema_version {version!r}",
            f"this version of the harness reads schema_version {SCHEMA_VERSION}",
            "read it with the version that wrote it (named in result.json, provenance.harness_version)",
        )
