"""How far a study has been mirrored: `<study>/.mlflow.json`, one entry per tracking server."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.core.results import to_json, write_atomic

FILE = ".mlflow.json"


class RunCursor(BaseModel):
    """What one mirrored run already holds."""

    model_config = ConfigDict(extra="forbid")

    id: str  # MLflow's run id
    start_ms: int  # MLflow's start time; time stamps of metrics count from it, so a repeated row is the same row
    step: int = 0  # last step of steps.jsonl
    evals: int = 0  # rows of evals.jsonl
    status: str = ""  # as last written
    resolved: bool = False  # whether the resolved algorithm is among the parameters
    files: dict[str, str] = Field(default_factory=dict)  # artifact -> digest


class Cursor(BaseModel):
    """The mirror of one study on one server."""

    model_config = ConfigDict(extra="forbid")

    experiment_id: str = ""
    created_ms: int = 0  # when the experiment was made; a fresh database counts its ids from 1 again
    arms: dict[str, RunCursor] = Field(default_factory=dict)  # parent runs, by arm and configuration
    runs: dict[str, RunCursor] = Field(default_factory=dict)  # by our run id
    report: RunCursor | None = None


class CursorFile(BaseModel):
    """The file: one cursor per server, so that a study can be mirrored to several."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    servers: dict[str, Cursor] = Field(default_factory=dict)


def load(study: Path) -> CursorFile:
    """The cursor file; an unreadable one counts as none, for mirroring again changes nothing."""
    try:
        return CursorFile.model_validate(json.loads((study / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return CursorFile()


def save(study: Path, file: CursorFile) -> None:
    """Writes the cursor file."""
    write_atomic(study / FILE, to_json(file))


def server_key(uri: str) -> str:
    """The tracking URI without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def digest(path: Path) -> str:
    """Content hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
