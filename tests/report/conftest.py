"""One rich fake study, built once for the whole folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.results import dumps, read_study
from harness.core.spec import ArmSpec
from harness.report import build_report, write_report
from tests.fakes.run_folders import write_fake_study

ARMS = (
    "PPO",
    "GRPO",
    ArmSpec(name="DAPO", algorithm="dapo", overrides={"admission": "all"}),
    "GSPO",
    ArmSpec(name="GSPO-token process", algorithm="gspo_token", bracket="dense"),
    ArmSpec(name="Random reward", algorithm="random_reward", bracket="control"),
)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six arms at four seeds with one collapsed, failed, unfinished and missing run each."""
    path = tmp_path_factory.mktemp("results") / "fake"
    write_fake_study(
        path, ARMS, range(4), 30, gains={"DAPO": 0.55, "GRPO": 0.2, "Random reward": 0.0},
        collapsed=[("GSPO", 1)], failed=[("PPO", 3)], unfinished=[("PPO", 2)], missing=[("GSPO", 3)],
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def files(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All written formats."""
    return write_report(study, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def report(study: Path) -> dict[str, Any]:
    """What report.json holds."""
    data: dict[str, Any] = json.loads(dumps(build_report(read_study(study))))
    return data
