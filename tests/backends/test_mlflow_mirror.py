"""The MLflow mirror against the real MLflow on sqlite: structure, curves, repetition, absent servers."""

import logging
import math
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow")

from harness.backends.trackers import cursor as cursors
from harness.backends.trackers.entries import event_points, flatten, row_points, run_tags
from harness.backends.trackers.mlflow import MlflowTracker, default_uri
from harness.core.results import RESULT, STEPS, append_line, dumps, read_run
from tests.fakes.run_folders import write_fake_study

STEPS_DONE = 6


def write(results: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {"arms": ("PPO", "GRPO"), "seeds": (0, 1), "steps": STEPS_DONE} | changes
    write_fake_study(results / "demo", **fields)
    return results / "demo"


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to lay out its tables; once is enough."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def results(tmp_path: Path, empty_database: Path) -> Path:
    """A results directory with a database that is ready."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A mirrored study that tests only look at."""
    results = tmp_path_factory.mktemp("results")
    shutil.copy(empty_database, results / "mlflow.db")
    study = write(results, collapsed=[("GRPO", 1)], failed=[("PPO", 1)], steps=10)
    (study / "report").mkdir()
    (study / "report" / "report.json").write_text("{}")
    MlflowTracker(f"sqlite:///{results}/mlflow.db", results).mirror(study)
    return results


class View:
    """What a user of MLflow sees."""

    def __init__(self, results: Path) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(f"sqlite:///{results}/mlflow.db")
        self.experiment = self.client.get_experiment_by_name("demo")
        self.runs = list(self.client.search_runs([self.experiment.experiment_id]))
        self.by_id = {run.data.tags.get("run_id"): run for run in self.runs}

    def role(self, role: str) -> list[Any]:
        return [run for run in self.runs if run.data.tags.get("role") == role]

    def curve(self, run: Any, key: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, key))

    def artifacts(self, run: Any, path: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, path)}


def test_experiment_is_the_study_parents_are_arms_children_are_seeds(shared: Path) -> None:
    view = View(shared)
    arms, seeds = view.role("arm"), view.role("seed")
    assert sorted(run.info.run_name for run in arms) == ["GRPO", "PPO"]
    children = defaultdict(set)
    for run in seeds:
        children[run.data.tags["mlflow.parentRunId"]].add(run.data.tags["seed"])
    assert {run.info.run_id for run in arms} == set(children)
    assert all(found == {"0", "1"} for found in children.values())


def test_curves_are_the_rows(shared: Path) -> None:
    view = View(shared)
    for folder in sorted((shared / "demo" / "runs").iterdir()):
        run = view.by_id[folder.name]
        rows = read_run(folder).steps
        for key in ("reward/mean", "kl_old/k3/last", "sampled_tokens_cum"):
            assert view.curve(run, key) == [(row["step"], pytest.approx(row[key])) for row in rows]
        assert "moe/max_vio" not in run.data.metrics
        scores = view.curve(run, "eval/chain/test/avg_at_1")
        assert scores[0][0] == 0


def test_parameters_tags_status(shared: Path) -> None:
    view = View(shared)
    status = {
        (r.data.tags["arm"], r.data.tags["seed"]): (r.data.tags["status"], r.info.status) for r in view.role("seed")
    }
    assert status == {
        ("PPO", "0"): ("completed", "FINISHED"),
        ("PPO", "1"): ("infra_failed", "FAILED"),
        ("GRPO", "0"): ("completed", "FINISHED"),
        ("GRPO", "1"): ("collapsed", "FINISHED"),
    }
    run = next(r for r in view.role("seed") if r.data.tags["status"] == "collapsed")
    assert run.data.tags["collapse.first_type"] == "reward_collapse"
    assert run.data.tags["collapse.first_step"] == "7"
    assert run.data.params["recipe.lr"] == "0.0003"
    assert run.data.params["resolved.ratio.kind"] == "token"
    assert {"algorithm", "bracket", "roster", "commit", "schema"} <= set(run.data.tags)
    assert "seed" not in view.role("arm")[0].data.params


def test_only_a_collapse_is_tagged_as_one(results: Path) -> None:
    """An earlier warning or pathology is a curve and a line of events.jsonl, not the run's first collapse."""
    study = write(results, arms=("GRPO",), seeds=(0,), collapsed=[("GRPO", 0)])
    [folder] = (study / "runs").iterdir()
    run = read_run(folder)
    early = [e.model_copy(update={"severity": s, "onset_step": 1}) for s in ("WARN", "DEGRADED") for e in run.events]
    assert run_tags(replace(run, events=[*early, *run.events]))["collapse.first_step"] == "4"
    assert "collapse.first_type" not in run_tags(replace(run, events=early))
    assert len([*event_points([*early, *run.events], 0)]) == 3


def test_artifacts_lie_in_the_results_directory(shared: Path) -> None:
    view = View(shared)
    assert view.experiment.artifact_location.startswith((shared / "mlartifacts").as_uri())
    assert view.artifacts(view.role("seed")[0]) >= {"spec.json", "result.json"}
    report = view.role("report")[0]
    assert view.artifacts(report) == {"study.yaml", "report"}
    assert view.artifacts(report, "report") == {"report/report.json"}


def test_mirroring_grows_with_the_run_and_repeats_nothing(results: Path) -> None:
    study = write(results, arms=("GRPO",), seeds=(0,), steps=8, unfinished=[("GRPO", 0)])
    folder = next((study / "runs").iterdir())
    uri = f"sqlite:///{results}/mlflow.db"
    tracker = MlflowTracker(uri, results)
    tracker.mirror(study)
    first = View(results)
    run = first.by_id[folder.name]
    assert (run.info.status, run.data.tags["status"]) == ("RUNNING", "started")
    assert len(first.curve(run, "reward/mean")) == 4

    rows = read_run(folder).steps
    append_line(folder / STEPS, dumps(rows[-1] | {"step": 5, "reward/mean": 0.5}))
    write(results / "other", arms=("GRPO",), seeds=(0,), steps=8)
    finished = next((results / "other" / "demo" / "runs").iterdir()) / RESULT
    (folder / RESULT).write_text(finished.read_text())
    tracker.mirror(study)
    second = View(results)
    assert second.curve(second.by_id[folder.name], "reward/mean")[-1] == (5, 0.5)
    assert second.by_id[folder.name].info.status == "FINISHED"

    (study / cursors.FILE).unlink()  # a lost cursor: everything is sent again
    MlflowTracker(uri, results).mirror(study)
    third = View(results)
    assert len(third.runs) == len(second.runs) == 3
    for key in ("reward/mean", "eval/chain/test/avg_at_1"):
        assert third.curve(third.by_id[folder.name], key) == second.curve(second.by_id[folder.name], key)
    history = third.client.get_metric_history(third.by_id[folder.name].info.run_id, "reward/mean")
    assert len(history) == 5


def test_a_new_server_behind_the_same_address_gets_everything(results: Path) -> None:
    study = write(results, arms=("GRPO",), seeds=(0,))
    shutil.copy(results / "mlflow.db", results / "old.db")
    MlflowTracker(f"sqlite:///{results}/old.db", results).mirror(study)
    cursor = study / cursors.FILE
    cursor.write_text(cursor.read_text().replace("old.db", "mlflow.db"))
    tracker = MlflowTracker(None, results)
    tracker.mirror(study)
    assert tracker.error is None
    view = View(results)
    assert len(view.curve(view.role("seed")[0], "reward/mean")) == STEPS_DONE


def test_unreachable_server_costs_seconds_and_one_warning(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = write(results, arms=("GRPO",), seeds=(0,))
    tracker = MlflowTracker("http://user:secret@127.0.0.1:9", results)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            tracker.mirror(study)
        tracker.close()
    assert time.monotonic() - start < 30
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("harness")]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert lines[0].startswith("MLflow at http://127.0.0.1:9 unreachable: ")
    assert lines[0].endswith(f"; the study goes on; mirror later with `harness mirror {study}`")
    assert "secret" not in lines[0]
    assert tracker.error

    late = MlflowTracker(None, results)  # later, elsewhere: replayed from the folders
    late.mirror(study)
    assert late.error is None
    assert len(View(results).role("seed")) == 1


def test_broken_folder_does_not_raise(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = write(results, arms=("GRPO",), seeds=(0,))
    (next((study / "runs").iterdir()) / RESULT).write_text("{")
    tracker = MlflowTracker(None, results)
    tracker.mirror(study)
    assert tracker.error is not None
    assert "not JSON" in tracker.error
    assert "cannot mirror this folder" in caplog.text
    tracker.mirror(results / "nowhere")


def test_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    assert MlflowTracker(None, tmp_path).uri == "http://example.org"
    assert MlflowTracker("sqlite:///x.db", tmp_path).uri == "sqlite:///x.db"


def test_module_imports_without_mlflow_and_mirrors_quietly(tmp_path: Path) -> None:
    study = write(tmp_path, arms=("GRPO",), seeds=(0,))
    code = (
        "import sys; from pathlib import Path\n"
        "from harness.backends.trackers.mlflow import MlflowTracker\n"
        "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules\n"
        f"tracker = MlflowTracker(None, Path({str(tmp_path)!r}))\n"
        f"tracker.mirror(Path({str(study)!r})); tracker.close()\n"
        "assert tracker.error is None, tracker.error\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_entries() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": "1", "a.c": "{}", "d": "[1, 2]"}
    rows = [{"step": 3, "wallclock_s": 1.5, "reward/mean": 0.5, "len/mean": None, "ratio/tok_q01/last": 1.0,
             "clip/tok_any/first": 0.0, "clip/tok_any/last": 0.1, "grad/norm_pre/first": 1.0}]  # fmt: skip
    points = {p.key: p for p in row_points(rows, start_ms=1000)}
    assert set(points) == {"wallclock_s", "reward/mean", "clip/tok_any/last", "grad/norm_pre/first"}
    assert points["reward/mean"] == ("reward/mean", 0.5, 2500, 3)
    assert not any(math.isnan(p.value) for p in points.values())
