"""Provenance is collected without importing what it names."""

import subprocess
import sys
from pathlib import Path

from harness.core.provenance import collect, git_state, package_versions

ROOT = Path(__file__).parents[2]


def test_collects() -> None:
    found = collect(["harness", "compare"])
    assert found.packages["pydantic"] == package_versions()["pydantic"]
    assert found.num_cpus >= 1
    assert found.cpu
    assert found.started.endswith("+00:00")
    assert found.command == ["harness", "compare"]


def test_imports_nothing_heavy() -> None:
    code = (
        "from harness.core.provenance import collect; import sys; collect([]);"
        "assert not {'torch', 'mlflow', 'optuna', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    assert git_state(tmp_path)[0] is None
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("-c", "core.hooksPath=/dev/null", "commit", "-q", "-m", "m")
    commit, dirty = git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path) == (commit, True)
