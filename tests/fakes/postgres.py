"""A PostgreSQL server of the test's own: a temporary folder, a free port, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"

    def call(*words: str) -> None:
        log = folder / "call.txt"
        with log.open("wb") as out:
            done = subprocess.run(words, user=user, cwd=folder, stdout=out, stderr=out, timeout=60, check=False)
        assert done.returncode == 0, log.read_text()

    try:
        call("initdb", "-D", str(data), "-U", "harness", "-A", "trust", "--no-sync")
        call("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log.txt"), "-w", "start")
        try:
            yield f"postgresql://harness@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)
