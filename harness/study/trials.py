"""Optuna's storage behind one door: opening, one controller at a time, going on where a dead one stopped.

Only controllers come here; workers execute runs and know nothing of it.
"""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.core.errors import InfrastructureError, UsageError
from harness.study.compare import make_writable

HEARTBEAT_S, GRACE_S, RETRIES = 60, 180, 2  # of a storage with several controllers
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
    except (StorageInternalError, OSError) as error:
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
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_S}})
    if "://" not in url:
        raise UsageError(f"--storage {url}", "it is no URL", f"{SQLITE}FILE, {JOURNAL}FILE, or postgresql://...")
    try:
        return RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"--storage {url}", f"it cannot be opened: {error}", "pip install psycopg2-binary, or a correct URL"
        ) from None


def open_study(
    storage: BaseStorage, name: str, directions: Sequence[Literal["maximize", "minimize"]], identity: str
) -> optuna.Study:
    """Creates or continues a study; one of that name with another space or other settings is refused."""
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list(directions), load_if_exists=True
    )  # fmt: skip
    known = study.user_attrs.get(IDENTITY)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, identity)
    elif known != identity:
        raise UsageError(
            f"Optuna study {name}", "one of that name exists with another space or other settings",
            "another --name or --storage, or the settings it was begun with",
        )  # fmt: skip
    return study


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
        return study.ask(dict(dimensions))


def beat(study: optuna.Study, trials: Sequence[Trial]) -> None:
    """Says that these trials are alive, and hands those of dead controllers out again, where the storage knows how."""
    storage = study._storage
    if isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None:
        for trial in trials:
            storage.record_heartbeat(trial._trial_id)
        optuna.storages.fail_stale_trials(study)


def note(trial: Trial, facts: Mapping[str, Any]) -> None:
    """User attributes, each a line in the dashboard."""
    for key, value in facts.items():
        trial.set_user_attr(key, value)
