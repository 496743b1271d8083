"""Optuna's storage behind one door: opening, one controller at a time, going on where a dead one stopped.

Only controllers come here; workers execute runs and know nothing of it.
"""

from __future__ import annotations

import fcntl
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from harness.core.errors import InfrastructureError, UsageError
from harness.study.compare import make_writable

HEARTBEAT_S, GRACE_S, RETRIES = 60, 180, 2  # of a storage with several controllers
OPENING_S = 20  # how long another controller may take between making a study and saying what it is about
OPENINGS = 5  # attempts to make the tables of an empty database
LOCKED_S = 60  # how long a busy sqlite file is waited for
JOURNAL, SQLITE = "journal:", "sqlite:///"
IDENTITY = "identity"  # user attribute of an Optuna study: hash of what its trials are about

optuna.logging.set_verbosity(optuna.logging.WARNING)


def default_storage(folder: Path) -> str:
    """A sqlite file in the study's folder; `optuna-dashboard` opens it."""
    return f"{SQLITE}{folder / 'optuna.db'}"


def file_of(url: str) -> Path | None:
    """The file of a sqlite or journal storage; None for a server."""
    for prefix in (SQLITE, JOURNAL):
        if url.startswith(prefix):
            return Path(url.removeprefix(prefix))
    return None


@contextmanager
def controller(url: str) -> Iterator[None]:
    """Holds the storage for this process. A file has one controller; the lock goes with the process, also by SIGKILL.

    A server (PostgreSQL) has as many as like: their trials carry heartbeats, and those of dead ones are tried again.
    """
    file = file_of(url)
    if file is None:
        open_storage(url)  # refused here, before anything is written
        yield
        return
    make_writable(file.parent)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"storage {url}",
                "another command is using it, and two controllers of one file would give the same trials to two",
                "wait for the other, another --name, or --storage postgresql://... for several controllers",
            ) from None
        yield


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """A storage that cannot be written is an infrastructure error with a way out."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise InfrastructureError(
            f"the storage {url} failed: {cause}\n  free space or release the file, and repeat the command: finished "
            "runs are kept, and the search goes on where it stopped"
        ) from error


def open_storage(url: str) -> BaseStorage:
    """sqlite:///FILE, journal:FILE, or the URL of a database server."""
    if url.startswith(JOURNAL):
        return JournalStorage(JournalFileBackend(url.removeprefix(JOURNAL)))
    if url.startswith(SQLITE):
        return _sqlite(url)
    if "://" not in url:
        raise UsageError(f"--storage {url}", "it is no URL", f"{SQLITE}FILE, {JOURNAL}FILE, or postgresql://...")
    try:
        return _server(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"--storage {url}", f"it cannot be opened: {error}",
            "pip install 'rl-harness[postgresql]', or a correct URL",
        ) from None  # fmt: skip
    except SQLAlchemyError as error:
        cause = " ".join(str(error).split())[:200]
        raise UsageError(f"--storage {url}", f"it cannot be reached: {cause}", "start the server, or correct the URL"
                         ) from None  # fmt: skip


def _sqlite(url: str) -> RDBStorage:
    """A file with a write-ahead log: a trial is some forty transactions, and none of them waits for the disk.

    SIGKILL loses nothing; a power cut may lose the last moments, whose runs are then found finished.
    """
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_S}})

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections from before
    return storage


def _server(url: str) -> RDBStorage:
    """A database of several controllers; two that make its tables at the same moment try again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        again = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
        for attempt in range(OPENINGS):
            try:
                return RDBStorage(
                    url, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S, heartbeat_stale_trial_callback=again
                )
            except (IntegrityError, ProgrammingError):
                if attempt == OPENINGS - 1:
                    raise
                time.sleep(0.5)
    raise AssertionError("the last attempt returns or raises")


def open_study(
    url: str, name: str, directions: Sequence[Literal["maximize", "minimize"]], identity: str,
    begin: Callable[[optuna.Study], None] = lambda study: None,
) -> optuna.Study:  # fmt: skip
    """Creates or continues a study; one of that name with another space or other settings is refused.

    `begin` puts the first trials into the queue, once: of several controllers the one that made the study does it, and
    where that one died meanwhile the next, for which `begin` must leave alone what is there.
    """
    storage = open_storage(url)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=list(directions))
        known = None
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        known = _identity(study, 0.0 if file_of(url) else OPENING_S)
    if known is None and all(t.state == TrialState.WAITING for t in study.get_trials(deepcopy=False)):
        begin(study)
        study.set_user_attr(IDENTITY, identity)
    elif known != identity:
        raise UsageError(
            f"Optuna study {name}", "one of that name exists with another space or other settings",
            "another --name or --storage, or the settings it was begun with",
        )  # fmt: skip
    return study


def _identity(study: optuna.Study, patience_s: float) -> str | None:
    """What the study says it is about; another controller that is just making it gets time to say so."""
    deadline = time.monotonic() + patience_s
    while (known := study.user_attrs.get(IDENTITY)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return None if known is None else str(known)


def predecessors(trial: FrozenTrial) -> set[int]:
    """Numbers of the failed trials that this one tries again."""
    found = {trial.user_attrs.get("retry_of"), *trial.system_attrs.get("retry_history", ())}
    return {number for number in found if number is not None}


def left_running(study: optuna.Study, url: str) -> list[FrozenTrial]:
    """Trials that an ended controller of a file left behind: they go on, their runs continue from their checkpoints.

    With several controllers a running trial may be somebody else's; there the heartbeat decides.
    """
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if file_of(url) is not None else []


def resumed(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """A running trial as one that can be told about."""
    return Trial(study, trial._trial_id)


def ask(study: optuna.Study, dimensions: Mapping[str, BaseDistribution]) -> Trial:
    """The next trial, all its parameters chosen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")  # `beat` sends it
        trial = study.ask(dict(dimensions))
    if (storage := _with_heartbeats(study)) is not None:
        storage.record_heartbeat(trial._trial_id)
    return trial


def _with_heartbeats(study: optuna.Study) -> BaseHeartbeat | None:
    """The study's storage where it has several controllers."""
    storage = study._storage  # Optuna's cache around ours
    return storage if isinstance(storage, BaseHeartbeat) and storage.get_heartbeat_interval() is not None else None


class Heart:
    """Says that our trials are alive, and hands those of dead controllers out again, where the storage knows how."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._next = 0.0

    def beat(self, trials: Sequence[Trial]) -> None:
        """Once per interval, however often it is called."""
        storage = _with_heartbeats(self._study)
        if storage is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (storage.get_heartbeat_interval() or HEARTBEAT_S)
        for trial in trials:
            storage.record_heartbeat(trial._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        for left in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            begun = left.datetime_start
            if "arm" not in left.user_attrs and begun and (datetime.now() - begun).total_seconds() > GRACE_S:
                self._hand_out_again(storage, left)  # its controller died before its first beat

    def _hand_out_again(self, storage: BaseHeartbeat, left: FrozenTrial) -> None:
        """Does for a trial without any heartbeat, which Optuna never calls stale, what Optuna does for stale ones."""
        try:
            self._study.tell(left.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):
            return  # another controller was faster
        callback = storage.get_heartbeat_stale_trial_callback()
        assert callback is not None, "storages with heartbeats are opened with it"
        callback(self._study, self._study.get_trials()[left.number])


def note(trial: Trial, facts: Mapping[str, Any]) -> None:
    """User attributes, each a line in the dashboard; in a database one transaction for all of them."""
    backend = getattr(trial.storage, "_backend", trial.storage)  # behind Optuna's cache of finished trials
    if not isinstance(backend, RDBStorage):
        for key, value in facts.items():
            trial.set_user_attr(key, value)
        return
    with _create_scoped_session(backend.scoped_session, True) as session:
        state: Any = TrialModel.find_or_raise_by_id(trial._trial_id, session).state  # typed as its column
        backend.check_trial_is_updatable(trial._trial_id, state)
        known = {str(a.key): a for a in TrialUserAttributeModel.where_trial_id(trial._trial_id, session)}
        for key, text in ((key, json.dumps(value)) for key, value in facts.items()):
            if key in known:
                known[key].value_json = text
            else:
                session.add(TrialUserAttributeModel(trial_id=trial._trial_id, key=key, value_json=text))
    trial._cached_frozen_trial = trial.storage.get_trial(trial._trial_id)
