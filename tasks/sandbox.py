"""Runs Python programs that nobody has read: bubblewrap around them, limits on everything, the whole tree killed.

Inside there is no network, no home, no environment and no other process; /usr and the interpreter are read-only, and
the only place to write is a small memory-backed /tmp that ends with the program. Each program has a process namespace
of its own, so killing its first process kills whatever it started, daemons and zombies included.
"""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Ending = Literal["exit", "time limit", "output limit"]
BOX = "/box"  # where a program's files are, read-only
_FIRST_UID, _UIDS = (
    2_000_000_000,
    100_000_000,
)  # accounts that exist nowhere; one per program, so that NPROC counts it alone
_counter = itertools.count(os.getpid() * 1009)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use."""

    wall_s: float = 6.0
    cpu_s: int = 5
    memory_mib: int = 512  # address space of each process
    processes: int = 16  # processes and threads
    output_bytes: int = 1 << 20  # stdout and stderr together
    disk_mib: int = 32  # of /tmp, and of any file


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended."""

    stdout: str
    stderr: str
    code: int  # exit code, or minus the signal
    ending: Ending
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What keeps programs in here; `kind` is none where nothing does."""

    kind: Literal["bubblewrap", "none"]
    detail: str  # version and accounts, or why there is none


NONE = Isolation(kind="none", detail="limits and a process group only: programs can read files and use the network")


@lru_cache(maxsize=1)
def available() -> Isolation:
    """The isolation that works on this machine, found by running a program in it."""
    if shutil.which("bwrap") is None:
        return Isolation(
            kind="none", detail="bubblewrap is not installed: make system-deps, or apt-get install bubblewrap"
        )
    probe = "import os, socket; print(os.getuid(), os.getpid(), os.path.exists('/home'), len(socket.if_nameindex()))"
    try:
        ran = run({"main.py": probe}, "", Limits(wall_s=30.0), "bubblewrap")
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Isolation(kind="none", detail=f"bubblewrap does not start: {error}")
    if ran.code != 0 or len(ran.stdout.split()) != 4:
        reason = ran.stderr.strip().splitlines()
        return Isolation(kind="none", detail=f"bubblewrap does not work here: {reason[-1] if reason else ran.ending}")
    account = "an account of its own" if os.geteuid() == 0 else "a user namespace"
    return Isolation(
        kind="bubblewrap",
        detail=f"{version.strip()}: no network, no home, own processes, {account}, memory-backed /tmp",
    )


def run(
    files: Mapping[str, str], stdin: str, limits: Limits, kind: Literal["bubblewrap", "none"], main: str = "main.py"
) -> Ran:
    """Runs `python main.py` with these files beside it. Never raises for what the program does."""
    with tempfile.TemporaryDirectory(prefix="program-") as place:
        folder = Path(place)
        folder.chmod(0o755)  # the program's account must be able to read it
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
            (folder / name).chmod(0o644)
        command = _isolated(folder, limits, main) if kind == "bubblewrap" else _bare(folder, limits, main)
        bare = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        cwd = None if kind == "bubblewrap" else place
        return _watched(command, stdin.encode("utf-8", errors="replace"), limits, bare, cwd)


def _limited(limits: Limits) -> list[str]:
    size = limits.disk_mib << 20
    return [
        "prlimit", f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}", f"--as={limits.memory_mib << 20}",
        f"--nproc={limits.processes}", f"--fsize={size}", "--core=0", "--nofile=64",
    ]  # fmt: skip


def _python(main: str) -> list[str]:
    return [str(Path(sys.executable).resolve()), "-I", "-S", "-B", "-X", "utf8", main]


def _isolated(folder: Path, limits: Limits, main: str) -> list[str]:
    """bubblewrap, then limits, then an account of its own where we are root, then Python."""
    wrap = [
        "bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
        "--setenv", "HOME", "/tmp", "--setenv", "OMP_NUM_THREADS", "1", "--hostname", "sandbox",
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    for name in ("bin", "lib", "lib32", "lib64", "sbin"):
        path = Path("/") / name
        if path.is_symlink():
            wrap += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            wrap += ["--ro-bind", str(path), str(path)]
    prefix = str(Path(sys.base_prefix).resolve())
    if not prefix.startswith("/usr"):
        wrap += ["--ro-bind", prefix, prefix]
    size = str(limits.disk_mib << 20)
    wrap += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
    wrap += ["--ro-bind", str(folder), BOX, "--chdir", "/tmp"]
    drop: list[str] = []
    if os.geteuid() == 0:  # root is exempt from the limit on processes, so the program becomes somebody else
        account = str(_FIRST_UID + next(_counter) % _UIDS)
        wrap += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        drop = [
            "setpriv",
            f"--reuid={account}",
            f"--regid={account}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
    else:
        wrap += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    return [*wrap, "--", *_limited(limits), *drop, *_python(f"{BOX}/{main}")]


def _bare(folder: Path, limits: Limits, main: str) -> list[str]:
    """Without isolation; the account's own processes count towards NPROC, so there is no limit on them."""
    limited = [part for part in _limited(limits) if not part.startswith("--nproc")]
    return [*limited, *_python(str(folder / main))]


def _watched(command: Sequence[str], stdin: bytes, limits: Limits, env: Mapping[str, str], cwd: str | None) -> Ran:
    """Feeds, reads within the limits, kills the whole tree."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env), cwd=cwd,
        start_new_session=True,
    )  # fmt: skip
    try:
        texts, ending = _exchange(process, stdin, limits, start + limits.wall_s)
        if ending == "exit":
            try:
                process.wait(timeout=max(0.0, start + limits.wall_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                ending = "time limit"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
    out, err = (t.decode("utf-8", errors="replace") for t in texts)
    code = process.returncode
    if code > 128:  # how bubblewrap passes a signal on
        code = 128 - code
    return Ran(stdout=out, stderr=err, code=code, ending=ending, seconds=time.monotonic() - start)


def _exchange(
    process: subprocess.Popen[bytes], stdin: bytes, limits: Limits, until: float
) -> tuple[tuple[bytes, bytes], Ending]:
    """(stdout, stderr) up to the limits. A program need not read what it is given."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    out, err = texts.values()
    left = memoryview(stdin)
    ending: Ending = "exit"
    with selectors.DefaultSelector() as selector:
        for number in texts:
            selector.register(number, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        reading = len(texts)
        while reading:
            wait = until - time.monotonic()
            if wait <= 0:
                ending = "time limit"
                break
            for key, _ in selector.select(wait):
                if key.fd in texts:
                    more = os.read(key.fd, 1 << 16)
                    texts[key.fd] += more
                    if not more:
                        selector.unregister(key.fd)
                        reading -= 1
                    continue
                try:
                    left = left[os.write(key.fd, left[: 1 << 16]) :] if left else left
                except BlockingIOError:
                    continue
                except OSError:  # nobody reads any more
                    left = left[:0]
                if not left:
                    selector.unregister(key.fd)
                    with suppress(OSError):
                        process.stdin.close()
            if len(out) + len(err) > limits.output_bytes:
                ending = "output limit"
                break
    return (bytes(out[: limits.output_bytes]), bytes(err[: limits.output_bytes])), ending
