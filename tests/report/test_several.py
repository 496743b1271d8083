"""Several studies in one report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import StratifiedTable

from tests.cli.test_usage import run
from tests.fakes.run_folders import write_fake_study
from tests.report.test_report import parse


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tasks: the second lacks an arm and has a collapse."""
    path = tmp_path_factory.mktemp("results")
    write_fake_study(path / "one", ["GRPO", "PPO", "DAPO"], range(10), 6, gains={"GRPO": 0.2, "PPO": 0.2, "DAPO": 0.4})
    write_fake_study(
        path / "two", ["GRPO", "DAPO"], range(12), 6, task="sums", gains={"GRPO": 0.1, "DAPO": 0.3},
        collapsed=[("GRPO", 3)], missing=[("DAPO", 11)],
    )  # fmt: skip
    return [path / "one", path / "two"]


def scores(report: dict[str, Any], arm: str) -> dict[int, float]:
    return {r["seed"]: r["score"] for r in report["runs"] if r["arm"] == arm and r["counted"]}


def test_arms_are_averaged_over_studies(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", *map(str, folders), "--out", str(tmp_path), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    across, studies = data["across"], data["studies"]
    assert across["left_out"] == [{"arm": "PPO", "missing": ["two"]}]
    assert [a["name"] for a in across["arms"]] == ["DAPO", "GRPO"]
    grpo = across["arms"][1]
    tables = [np.array(list(scores(s, "GRPO").values())) for s in studies]
    assert grpo["mean"]["value"] == pytest.approx(np.mean([t.mean() for t in tables]))
    assert grpo["mean"]["low"] < grpo["mean"]["value"] < grpo["mean"]["high"]
    assert (grpo["collapse"]["k"], grpo["collapse"]["n"]) == (1, 22)
    [pair] = across["pairs"]
    differences = [
        [scores(s, "DAPO")[x] - scores(s, "GRPO")[x] for x in scores(s, "DAPO") if x in scores(s, "GRPO")]
        for s in studies
    ]
    assert pair["value"] == pytest.approx(np.mean([np.mean(d) for d in differences]))
    assert pair["n"] == 21
    table = StratifiedTable([np.array([[0, 11], [1, 11]])])  # the study without a collapse says nothing
    assert pair["p_collapse"] == pytest.approx(table.test_null_odds().pvalue)
    assert all(c["alpha"] == 0.025 for s in studies for c in s["comparisons"]), "two studies share the page's level"
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [r["study"] for r in rows] == ["one"] * 30 + ["two"] * 23
    page = parse(tmp_path / "report.html")
    assert "PPO is not averaged: no score in two." in page.text
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert all((tmp_path / name / "report.html").exists() for name in ("one", "two"))
    assert "### Verdict" in (tmp_path / "report.md").read_text()


def test_studies_whose_arms_share_no_task_are_reported_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_study(tmp_path / "a", ["GRPO"], [0, 1, 2], 4)
    write_fake_study(tmp_path / "b", ["PPO"], [0, 1, 2], 4, task="sums")
    assert run(monkeypatch, "report", str(tmp_path / "a"), str(tmp_path / "b")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No arm has a score in all of a, b: arms are matched by name, and these share no task." in said
    assert (tmp_path / "report-a-b" / "report.html").exists()


def test_a_report_is_rendered_again_from_its_json_alone(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", *map(str, folders), "--out", str(tmp_path / "a")) == 0
    for part in (".", "one"):  # the page of both studies, and that of one
        first, again = tmp_path / "a" / part, tmp_path / "b" / part
        assert run(monkeypatch, "report", str(first / "report.json"), "--out", str(again)) == 0
        names = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
        assert len(names) > 7
        for name in names:
            assert (again / name).read_bytes() == (first / name).read_bytes(), name
    (tmp_path / "old.json").write_text('{"schema_version": 1, "kind": "study report"}')
    assert run(monkeypatch, "report", str(tmp_path / "old.json")) == 2
    assert "schema_version 1, kind 'study report'" in capsys.readouterr().err


def test_a_study_counts_once(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", str(folders[0]), str(folders[0])) == 2
    assert "one more than once" in capsys.readouterr().err
    assert run(monkeypatch, "report", *map(str, folders), "--watch") == 2
