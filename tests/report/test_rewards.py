"""Named parts of the reward stay apart in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.results import EVALS, RUNS, STEPS, dumps, read_lines, read_study, write_atomic
from harness.report import build_report, write_report
from tests.fakes.run_folders import write_fake_study


def add_components(study: Path) -> None:
    """Correctness rises with training while the format falls; GSPO's runs say nothing of the format."""
    for run in (study / RUNS).iterdir():
        silent = run.name.startswith("gspo")
        rows = [{**row, "reward/component/correct": 0.1 * row["step"]} for row in read_lines(run / STEPS)]
        write_atomic(run / STEPS, "".join(dumps(row) + "\n" for row in rows))
        evals = [*read_lines(run / EVALS)]
        for e in evals:
            parts = {"correct": e["score"], "format": 0.9 if e["step"] == 0 else 0.4}
            e["components"] = {"correct": parts["correct"]} if silent else parts
        write_atomic(run / EVALS, "".join(json.dumps(e) + "\n" for e in evals))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "parts"
    write_fake_study(path, ("GRPO", "GSPO"), range(3), 20)
    add_components(path)
    return path


def test_each_part_has_its_own_numbers(study: Path) -> None:
    report: dict[str, Any] = json.loads(dumps(build_report(read_study(study))))
    found = report["reward_components"]
    assert sorted(found["GRPO"]) == ["correct", "format"]
    assert sorted(found["GSPO"]) == ["correct"]
    arm = next(a for a in report["arms"] if a["name"] == "GRPO")
    assert found["GRPO"]["correct"]["final"]["value"] == pytest.approx(arm["score"]["value"])
    assert found["GRPO"]["correct"]["training_end"]["value"] == pytest.approx(1.8), "mean of the last five of 20 steps"
    assert (found["GRPO"]["format"]["base"]["value"], found["GRPO"]["format"]["final"]["value"]) == pytest.approx(
        (0.9, 0.4)
    )
    assert found["GRPO"]["format"]["training_end"]["value"] is None


def test_the_table_stands_in_every_format_and_only_where_there_are_parts(study: Path, tmp_path: Path) -> None:
    files = write_report(study, tmp_path / "with")
    markdown = files["md"].read_text(encoding="utf-8")
    assert "## Parts of the reward" in markdown
    assert "format: final" in markdown
    assert "Parts of the reward" in files["html"].read_text(encoding="utf-8")
    plain = tmp_path / "plain"
    write_fake_study(plain, ("GRPO", "GSPO"), range(3), 10)
    assert "Parts of the reward" not in write_report(plain, tmp_path / "without")["md"].read_text(encoding="utf-8")
