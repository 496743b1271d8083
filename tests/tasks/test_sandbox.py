"""Hostile programs: each is contained and reported, the harness goes on, no process is left."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tasks import sandbox
from tasks.sandbox import Limits, Ran, available, run

pytestmark = pytest.mark.system("bwrap")
LIMITS = Limits(wall_s=4.0, cpu_s=3)


def box(program: str, stdin: str = "", limits: Limits = LIMITS) -> Ran:
    return run({"main.py": program}, stdin, limits, "bubblewrap")


def left_over() -> list[str]:
    """Processes of accounts that only programs have, and of bubblewrap."""
    listed = subprocess.run(["ps", "-eo", "uid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line.split(None, 1) for line in listed]
    return [
        args for uid, args in mine if int(uid) >= sandbox._FIRST_UID or ("bwrap" in args and str(os.getpid()) in args)
    ]


@pytest.fixture(autouse=True)
def _nothing_left() -> object:
    yield
    time.sleep(0.05)
    assert left_over() == []


def test_it_works_here_and_a_program_runs() -> None:
    assert available().kind == "bubblewrap"
    ran = box("print(int(input()) * 2)", "21\n")
    assert (ran.stdout, ran.code, ran.ending) == ("42\n", 0, "exit")


def test_fork_bomb() -> None:
    ran = box("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    assert ran.ending == "time limit"
    ran = box("import os\ntry:\n    while True:\n        os.fork()\nexcept OSError as error:\n    print(error.errno)")
    assert "11" in ran.stdout  # EAGAIN: the limit on processes holds


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_endless_programs(program: str) -> None:
    ran = box(program, limits=Limits(wall_s=1.5, cpu_s=60))
    assert ran.ending == "time limit"
    assert ran.seconds < 10


def test_memory() -> None:
    ran = box("x = bytearray(10 << 30); print('had it')")
    assert (ran.code, ran.stdout) == (1, "")
    assert "MemoryError" in ran.stderr


def test_files_of_this_machine(tmp_path: Path) -> None:
    home = Path.home() / "written-by-a-hostile-program"
    for target in (home, tmp_path / "x", Path("/usr/x"), Path("/etc/x"), Path("/box/x")):
        ran = box(f"open({str(target)!r}, 'w').write('x')")
        assert ran.code == 1, target
        assert not target.exists()
    (tmp_path / "secret").write_text("s3cret")
    assert "s3cret" not in box(f"print(open({str(tmp_path / 'secret')!r}).read())").stdout
    assert box("open('/tmp/own', 'w').write('x'); print(open('/tmp/own').read())").stdout == "x\n"
    full = box("f = open('/tmp/a', 'wb')\nfor _ in range(200): f.write(bytes(1 << 20))")
    assert full.code != 0


def test_network(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = box(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('connected')")
    assert ran.code != 0
    assert "connected" not in ran.stdout


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_TOKEN", "s3cret")
    ran = box(
        "import os, glob; print(dict(os.environ)); [print(open(p, 'rb').read()) for p in glob.glob('/proc/*/environ')]"
    )
    assert "s3cret" not in ran.stdout + ran.stderr


def test_killing_others() -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        for program in ("os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os.kill(-1, 9)", f"os.kill({victim.pid}, 9)"):
            box(f"import os\n{program}")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_gigabyte_of_output() -> None:
    ran = box("import sys\nwhile True: sys.stdout.write('x' * 1000000)")
    assert ran.ending == "output limit"
    assert len(ran.stdout) <= LIMITS.output_bytes


def test_a_daemon_that_ignores_sigterm() -> None:
    program = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
    )
    assert (
        box(program, limits=Limits(wall_s=3.0)).seconds < 10
    )  # its output stays open; the tree is killed all the same


def test_input_that_nobody_reads_and_bytes_that_are_no_text() -> None:
    assert box("import os; os.close(0); print('done')", "y" * 5_000_000).stdout == "done\n"
    assert box("import sys; sys.stdout.buffer.write(bytes([255, 254]))").code == 0
