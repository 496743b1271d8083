"""Where trials are kept: several controllers of a server, one of a file, and what a kill leaves behind."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from harness.core.errors import InfrastructureError, UsageError
from harness.core.search import SearchRecord, write_search
from harness.study import trials
from harness.study.trials import default_storage, open_storage
from harness.study.tune import Search, run_trials
from tests.cli.test_usage import run as command
from tests.fakes import postgres
from tests.fakes.planted import PlantedExecutor
from tests.study.surfaces import SURFACE, journal, record

ROOT = Path(__file__).parents[2]
Controller = subprocess.Popen[str]
Url = Callable[[Path], str]  # of the storage in a folder
FIRST = ["defaults", "lr x 0.33", "lr x 3"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.server() as found:
        yield found


def start(url: str, folder: Path, plan: SearchRecord, pause_s: float = 0.05, num: int = 1) -> list[Controller]:
    """Controllers as processes, let go when all have opened the storage."""
    write_search(folder, plan)
    words = (sys.executable, "-m", "tests.fakes.controller", url, folder, folder / "search.json", str(pause_s))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    found = [subprocess.Popen(words, cwd=ROOT, text=True, **pipes) for _ in range(num)]
    for process in found:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in found:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return found


def kill(process: Controller) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def executed(process: Controller) -> int:
    """How many runs a controller that came to its end has executed."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(out)


def trials_of(url: str, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(url)).get_trials()


def planned(name: str, num: int) -> SearchRecord:
    plan = record(trials=num)
    return plan.model_copy(update={"searched": (plan.searched[0].model_copy(update={"optuna_study": name}),)})


def check_whole(found: list[FrozenTrial], num: int) -> list[FrozenTrial]:
    """As many complete trials as planned, none twice, the defaults once, nothing left behind."""
    complete = [t for t in found if t.state == TrialState.COMPLETE]
    assert len(complete) == len({tuple(sorted(t.params.items())) for t in complete}) == num
    assert sorted(t.user_attrs["what"] for t in complete if "what" in t.user_attrs) == [
        "defaults",
        "lr x 0.33",
        "lr x 3",
    ]
    assert len({r for t in complete for r in t.user_attrs["runs"]}) == 2 * num
    assert not [t for t in found if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    return complete


@pytest.mark.system("pg_ctl", "initdb", "python:psycopg")
def test_two_controllers_share_a_search_on_a_server(url: str, tmp_path: Path) -> None:
    plan = planned("shared", 14)
    both = start(url, tmp_path / "t", plan, pause_s=0.6, num=2)
    assert min([executed(c) for c in both]) > 0, "both had work"
    check_whole(trials_of(url, "shared"), 14)


@pytest.mark.system("pg_ctl", "initdb", "python:psycopg")
def test_trials_of_a_controller_that_died_are_tried_again_by_the_other(url: str, tmp_path: Path) -> None:
    plan = planned("killed", 10)
    [doomed] = start(url, tmp_path / "t", plan, pause_s=2.0)
    while not [t for t in trials_of(url, "killed") if t.state == TrialState.RUNNING]:
        time.sleep(0.05)
    kill(doomed)
    left = [t for t in trials_of(url, "killed") if t.state == TrialState.RUNNING]
    assert left, "it died with trials under way"
    assert executed(*start(url, tmp_path / "t", plan)) > 0
    found = trials_of(url, "killed")
    check_whole(found, 10)
    retried = {t.system_attrs.get("failed_trial") for t in found}
    assert {t.number for t in found if t.state == TrialState.FAIL} <= retried
    assert {t.number for t in left} <= retried


def taken_and_left(url: str, folder: Path, plan: SearchRecord) -> None:
    """What a controller leaves that is killed between taking the first trial and choosing its parameters."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = Search(url, folder, plan, plan.searched[0]).study.ask()
    assert taken.user_attrs["what"] == "defaults"
    assert not taken.params


@pytest.mark.system("pg_ctl", "initdb", "python:psycopg")
def test_the_defaults_survive_a_controller_that_died_before_its_first_heartbeat(url: str, tmp_path: Path) -> None:
    plan = planned("early", 5)
    taken_and_left(url, tmp_path / "t", plan)
    assert executed(*start(url, tmp_path / "t", plan)) > 0
    check_whole(trials_of(url, "early"), 5)


@pytest.mark.parametrize("storage", [journal, default_storage])
def test_the_defaults_survive_a_controller_of_a_file_that_died_early(storage: Url, tmp_path: Path) -> None:
    plan, url = record(trials=5), storage(tmp_path / "t")
    taken_and_left(url, tmp_path / "t", plan)
    again = Search(url, tmp_path / "t", plan, plan.searched[0])
    run_trials(again, PlantedExecutor(surface=SURFACE), 2, lambda s, states: None, pause_s=0.0)
    check_whole(again.study.get_trials(), 5)


@pytest.mark.system("pg_ctl", "initdb", "python:psycopg")
def test_another_space_under_the_same_name_is_refused_on_a_server(url: str, tmp_path: Path) -> None:
    plan = planned("spaces", 3)
    Search(url, tmp_path, plan, plan.searched[0])
    other = plan.searched[0].model_copy(update={"space": plan.searched[0].space[:1]})
    with pytest.raises(UsageError, match="another space"):
        Search(url, tmp_path, plan, other)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UsageError, match="cannot be reached") as error:
        open_storage("postgresql://harness@127.0.0.1:1/none")
    assert "start the server" in error.value.instead


@pytest.mark.parametrize("verb", ["ablate", "tune"])
@pytest.mark.parametrize("url", ["postgresql://harness@127.0.0.1:1/none", "nowhere"])
def test_a_storage_that_cannot_be_opened_leaves_no_folder(
    verb: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    results = tmp_path / "results"
    arms = ["-p", "dapo"] if verb == "ablate" else ["-a", "grpo"]
    given = [verb, *arms, "--storage", url, "--results", str(results), "--steps", "1"]
    assert command(monkeypatch, *given) == 2
    assert f"--storage {url}" in capsys.readouterr().err
    assert not [p for p in results.rglob("*") if p.is_file()]


@pytest.mark.parametrize("storage", [journal, default_storage])
def test_a_killed_controller_of_a_file_goes_on_and_a_second_one_is_refused(storage: Url, tmp_path: Path) -> None:
    plan, folder = record(trials=6), tmp_path / "t"
    url = storage(folder)
    [first] = start(url, folder, plan, pause_s=2.0)  # long beside what a busy machine needs to look once
    with pytest.raises(UsageError, match="another command is using it"), trials.controller(url):
        pass
    while not [t for t in trials_of(url, "t/grpo") if t.state == TrialState.COMPLETE]:
        time.sleep(0.05)
    kill(first)
    assert executed(*start(url, folder, plan)) > 0
    found = trials_of(url, "t/grpo")
    begun = [t for t in found if "arm" in t.user_attrs]  # not those that the kill left without parameters
    assert check_whole(found, 6) == begun, "none was run twice"


def test_a_locked_sqlite_file_is_told_and_leaves_the_search_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LOCKED_S", 0.2)
    plan, url = record(trials=5), default_storage(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    executor = PlantedExecutor(surface=SURFACE)
    search = Search(url, tmp_path, plan, plan.searched[0])
    with closing(sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InfrastructureError, match=r"locked.*\n.*repeat the command"):
            run_trials(search, executor, 2, lambda s, states: None, pause_s=0.0)
        other.execute("ROLLBACK")
    again = Search(url, tmp_path, plan, plan.searched[0])
    run_trials(again, PlantedExecutor(surface=SURFACE), 2, lambda s, states: None, pause_s=0.0)
    check_whole(again.study.get_trials(), 5)
