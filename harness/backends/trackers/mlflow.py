"""MLflow as a mirror of run folders: experiment = study, parent run = arm, child run = seed.

The folders stay the truth. A mirror can be made late, repeated and interrupted without harm, and a server that
cannot be reached costs one line of warning. The only module that imports mlflow.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from harness.backends.trackers import cursor as cursors
from harness.backends.trackers import entries
from harness.backends.trackers.cursor import Cursor, RunCursor
from harness.backends.trackers.entries import Point
from harness.core.benchmarks import BENCHMARKS, read_benchmarks
from harness.core.errors import HarnessError
from harness.core.results import EVENTS, REPORT, RESULT, SPEC, STUDY, RunFolder, StudyFolder, read_study

_LOG = logging.getLogger(__name__)
_BATCH = 1000  # metrics of one request, MLflow's limit
_PARAMS = 100  # parameters of one request, MLflow's limit
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 600.0
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


def default_uri(results_dir: Path) -> str:
    """`MLFLOW_TRACKING_URI`, else a sqlite file in the results directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(results_dir / 'mlflow.db').resolve()}"


class MlflowTracker:
    """Mirrors studies into one tracking server; implements `harness.core.ports.Tracker`."""

    name = "mlflow"

    def __init__(self, uri: str | None, results_dir: Path) -> None:
        self.results_dir = results_dir
        self.uri = uri or default_uri(results_dir)
        self.error: str | None = None  # why the last mirroring failed
        self._client: Any = None
        self._warned = False
        self._pause_s = _FIRST_PAUSE_S
        self._retry_at = 0.0
        self._behind: set[Path] = set()

    def mirror(self, study: Path) -> None:
        """Copies what is new. After a failure it tries again at growing intervals; `close` tries once more."""
        self._behind.add(study)
        if time.monotonic() >= self._retry_at:
            self._attempt(study)

    def close(self) -> None:
        """Mirrors what an earlier failure left behind, then forgets the connection."""
        for study in sorted(self._behind):
            self._attempt(study)
        self._client = None

    def _attempt(self, study: Path) -> None:
        try:
            _StudyMirror(self._connect(), self.uri, self.results_dir, study).run()
        except Exception as error:  # whatever happens here must not hurt the study
            self._failed(study, error)
        else:
            self.error = None
            self._behind.discard(study)
            self._pause_s = _FIRST_PAUSE_S
            self._retry_at = 0.0

    def _failed(self, study: Path, error: Exception) -> None:
        self._client = None
        where = cursors.server_key(self.uri)
        self.error = " ".join(str(error).replace(self.uri, where).split())[:200] or type(error).__name__
        self._retry_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if not self._warned:
            self._warned = True
            problem = "cannot mirror this folder" if isinstance(error, HarnessError) else "unreachable"
            _LOG.warning(
                "MLflow at %s %s: %s; the study goes on; mirror later with `harness mirror %s`",
                where, problem, self.error, study,
            )  # fmt: skip

    def _connect(self) -> Any:
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            from mlflow.tracking import MlflowClient

            for noisy in ("mlflow", "alembic"):
                logging.getLogger(noisy).setLevel(logging.ERROR)
            self._client = MlflowClient(tracking_uri=self.uri)
        return self._client


class _StudyMirror:
    """One pass over one study."""

    def __init__(self, client: Any, uri: str, results_dir: Path, path: Path) -> None:
        self.client, self.uri, self.results_dir, self.path = client, uri, results_dir, path
        self.file = cursors.load(path)
        self.cursor: Cursor = self.file.servers.setdefault(cursors.server_key(uri), Cursor())

    def run(self) -> None:
        """Experiment, arms, seeds, report; the cursor is saved after each run."""
        study = read_study(self.path)
        self._experiment(study)
        arms: dict[str, list[RunFolder]] = {}
        for run in study.runs:
            arms.setdefault(entries.arm_key(run), []).append(run)
        for key, runs in arms.items():
            parent = self._arm(key, runs[0])
            for run in runs:
                self._seed(run, parent)
                cursors.save(self.path, self.file)
            self._status(parent, _together(len(runs) == len(study.spec.seeds), runs))
        self._report()
        cursors.save(self.path, self.file)

    def _experiment(self, study: StudyFolder) -> None:
        found = self.client.get_experiment_by_name(study.spec.name)
        if found is not None and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if found is None:
            served = self.uri.startswith(("http:", "https:", "databricks"))
            root = (self.results_dir / "mlartifacts" / study.path.name).resolve()
            location = None if served else root.as_uri()
            tags = {"harness": "study", "study_hash": study.spec.hash}
            made = self.client.create_experiment(study.spec.name, artifact_location=location, tags=tags)
            found = self.client.get_experiment(made)
        fresh = Cursor(experiment_id=found.experiment_id, created_ms=found.creation_time or 0)
        if (self.cursor.experiment_id, self.cursor.created_ms) != (fresh.experiment_id, fresh.created_ms):
            self.cursor = self.file.servers[cursors.server_key(self.uri)] = fresh  # first time, or a new database

    def _arm(self, key: str, run: RunFolder) -> RunCursor:
        if key not in self.cursor.arms:
            shared = ("arm", "algorithm", "bracket", "roster")
            tags = {"role": "arm", **{name: str(getattr(run.spec, name)) for name in shared}}
            tags |= entries.trial_tags(self.path, run.spec.arm)
            self.cursor.arms[key] = made = self._create(run.spec.arm, f"arm:{key}", tags)
            self._params(made, entries.flatten(run.spec.model_dump(mode="json", exclude={"seed"})))
        return self.cursor.arms[key]

    def _seed(self, run: RunFolder, parent: RunCursor) -> None:
        if run.run_id not in self.cursor.runs:
            tags = {"role": "seed", "mlflow.parentRunId": parent.id, **entries.run_tags(run)}
            made = self.cursor.runs[run.run_id] = self._create(run.run_id, f"run:{run.run_id}", tags)
            self._params(made, entries.flatten(run.spec.model_dump(mode="json")))
        at = self.cursor.runs[run.run_id]
        rows = [row for row in run.steps if row["step"] > at.step]
        self._points(at, entries.row_points(rows, at.start_ms))
        at.step = rows[-1]["step"] if rows else at.step
        self._points(at, entries.eval_points(run.evals[at.evals :], at.start_ms))
        at.evals = len(run.evals)
        fresh = self._artifacts(at, [run.path / name for name in (SPEC, RESULT, EVENTS, BENCHMARKS)])
        if fresh or at.status != entries.status(run):
            self._outcome(at, run)

    def _outcome(self, at: RunCursor, run: RunFolder) -> None:
        self._points(at, entries.event_points(run.events, at.start_ms))
        self._points(at, entries.benchmark_points(read_benchmarks(run.path), at.start_ms))
        if run.result and not at.resolved:
            self._params(at, entries.flatten(run.result.algorithm_resolved, "resolved"))
            at.resolved = True
        self._tags(at, entries.run_tags(run))
        seconds = run.result.wallclock_s if run.result else 0.0
        self._status(at, entries.status(run), at.start_ms + int(1000 * seconds))

    def _report(self) -> None:
        files = [self.path / STUDY, *sorted(p for p in (self.path / REPORT).rglob("*") if p.is_file())]
        if self.cursor.report is None:
            self.cursor.report = self._create("study and report", "report", {"role": "report"})
        if self._artifacts(self.cursor.report, files):
            self._status(self.cursor.report, "completed")

    def _create(self, name: str, key: str, tags: Mapping[str, str]) -> RunCursor:
        """The run with this key, found again where a lost cursor file forgot it."""
        quoted = key.replace("'", "")
        found = self.client.search_runs([self.cursor.experiment_id], f"tags.harness_key = '{quoted}'", max_results=1)
        if found:
            return RunCursor(id=found[0].info.run_id, start_ms=found[0].info.start_time)
        made = self.client.create_run(
            self.cursor.experiment_id,
            run_name=name,
            tags={**tags, "harness_key": quoted, "mlflow.source.name": "harness"},
        )
        return RunCursor(id=made.info.run_id, start_ms=made.info.start_time)

    def _points(self, at: RunCursor, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        for part in _batched((Metric(p.key, p.value, p.time_ms, p.step) for p in points), _BATCH):
            self.client.log_batch(at.id, metrics=part)

    def _params(self, at: RunCursor, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for part in _batched((Param(key, value) for key, value in params.items()), _PARAMS):
            self.client.log_batch(at.id, params=part)

    def _tags(self, at: RunCursor, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(at.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _artifacts(self, at: RunCursor, files: Iterable[Path]) -> bool:
        """Uploads the files that are new or changed; true where there were any."""
        fresh = False
        for file in files:
            if not file.exists() or file.stat().st_size == 0:
                continue
            relative = file.relative_to(self.path)
            inside = relative.parent.as_posix() if relative.parts[0] == REPORT else ""
            known = f"{inside}/{file.name}"
            if at.files.get(known) != (new := cursors.digest(file)):
                self.client.log_artifact(at.id, str(file), inside or None)
                at.files[known] = new
                fresh = True
        return fresh

    def _status(self, at: RunCursor, status: str, end_ms: int | None = None) -> None:
        if at.status == status:
            return
        if status in ("planned", "started"):
            self.client.update_run(at.id, status="RUNNING")
        else:
            self.client.set_terminated(at.id, "FAILED" if status == "infra_failed" else "FINISHED", end_ms)
        at.status = status


def _together(all_there: bool, runs: Iterable[RunFolder]) -> str:
    """Status of an arm: ended when all its seeds have ended."""
    states = [entries.status(run) for run in runs]
    if not all_there or any(state in ("planned", "started") for state in states):
        return "started"
    return "infra_failed" if "infra_failed" in states else "completed"


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
