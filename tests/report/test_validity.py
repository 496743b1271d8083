"""INVALID runs are named, listed and left out; an INVALID comparison ranks nothing and ends with exit code 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import app, guarded
from harness.core.results import Finding, read_study
from harness.core.spec import ArmSpec
from harness.report import build_report, terminal_table, write_report
from tests.fakes.run_folders import write_fake_study
from tests.report.test_report import arm, parse

BROKEN = Finding(
    check="verifier", level="INVALID", measured="24 of 24 right responses refused", limit="no known case misjudged",
    why="The grader misjudges responses whose verdict is known.", advice="Correct the task's grader.",
)  # fmt: skip
WARNED = BROKEN.model_copy(update={"check": "truncation", "level": "WARN", "measured": "40% cut", "why": "Too many."})
PASSED = BROKEN.model_copy(update={"check": "ends", "level": "PASS"})


def judge(study: Path, name: str, *findings: Finding, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Gives the runs of an arm these findings."""
    worst = max((f.level for f in findings), key=("PASS", "WARN", "INVALID").index)
    for run in read_study(study).of(name):
        if run.spec.seed in seeds:
            data = json.loads((run.path / "result.json").read_text())
            data["validity"] = worst
            data["validity_reasons"] = [f.reason for f in findings if f.level != "PASS"]
            data["validity_findings"] = [f.model_dump(mode="json") for f in findings]
            (run.path / "result.json").write_text(json.dumps(data))


def exit_code(study: Path) -> int:
    codes: list[int] = []
    code = guarded(lambda: codes.append(int(app(["report", str(study)], standalone_mode=False) or 0)))
    return code or codes[0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO", "DAPO"], [0, 1, 2], 8)
    return tmp_path / "s"


def test_a_sound_study_passes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge(study, "GRPO", PASSED)
    assert exit_code(study) == 0
    report = build_report(read_study(study))
    found = report["validity"]
    assert (found["level"], found["reason"], found["findings"]) == ("PASS", None, [])
    assert found["passed"] == ["ends", "budget spent"]
    assert "INVALID" not in capsys.readouterr().out


def test_an_invalid_arm_is_named_and_the_others_are_ranked(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge(study, "PPO", BROKEN, PASSED)
    judge(study, "DAPO", WARNED)
    assert exit_code(study) == 0, "GRPO and DAPO are left"
    report = build_report(read_study(study))
    assert report["validity"]["level"] == "WARN"
    assert report["validity"]["runs"] == {"PASS": 3, "WARN": 3, "INVALID": 3, "unknown": 0}
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [("DAPO", "GRPO")]
    assert arm(report, "PPO")["n"] == 0
    assert report["tally"]["by_validity"]["completed"] == {"PASS": 3, "WARN": 3, "INVALID": 3}
    first, second = report["validity"]["findings"]
    assert (first["check"], first["arm"], len(first["runs"])) == ("verifier", "PPO", 3)
    assert (second["check"], second["level"]) == ("truncation", "WARN")
    files = write_report(study, draw=False)
    page = parse(files["html"])
    for text in (page.text, files["md"].read_text(), terminal_table(report, 80).replace("\n", " ")):
        assert "INVALID set-up, left out of every mean and ranking: verifier, PPO (3 runs)" in text
        assert "Set-up warnings: truncation, DAPO (3 runs)" in text
    assert "24 of 24 right responses refused" in page.text
    assert "Correct the task's grader." in page.text
    for run in report["runs"]:
        assert run["id"] in page.text, "still listed"
    assert "verifier, PPO" in capsys.readouterr().out


@pytest.mark.parametrize("arms", [["PPO", "DAPO"], ["GRPO"], ["GRPO", "PPO", "DAPO"]])
def test_without_a_valid_pair_nothing_is_ranked(
    study: Path, arms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in arms:
        judge(study, name, BROKEN)
    assert exit_code(study) == 3
    out, err = capsys.readouterr()
    assert "error: the comparison is INVALID, nothing is ranked: the set-up of" in err
    assert "verifier: The grader misjudges" in err
    assert "the comparison is INVALID and nothing is ranked" in " ".join(out.split())
    report = build_report(read_study(study))
    assert report["validity"]["level"] == "INVALID"
    assert report["comparisons"] == report["all_pairs"] == report["ranks"] == report["thresholds"] == []
    assert all(not g["ranked"] and not g["best_set"] for g in report["groups"])
    assert [n for g in report["groups"] for n in g["arms"]] == ["GRPO", "PPO", "DAPO"], "in the order of the study"
    assert report["answer"]["status"] == "invalid"
    text = parse(write_report(study, draw=False)["html"]).text
    assert "beats" not in text


def test_one_invalid_seed_leaves_the_others(study: Path) -> None:
    judge(study, "GRPO", BROKEN, seeds=(0,))
    assert exit_code(study) == 0
    report = build_report(read_study(study))
    assert {c["n"] for c in report["comparisons"]} == {2}


def test_no_seed_in_common_is_no_pair(study: Path) -> None:
    judge(study, "GRPO", BROKEN, seeds=(0, 1))
    judge(study, "PPO", BROKEN, seeds=(2,))
    judge(study, "DAPO", BROKEN, seeds=(2,))
    assert exit_code(study) == 3


def test_arms_that_differ_in_more_than_their_algorithm(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_study(study).of("PPO")[1]
    spec = json.loads((run.path / "spec.json").read_text())
    spec["backend"]["dtype"] = "bfloat16"
    (run.path / "spec.json").write_text(json.dumps(spec))
    assert exit_code(study) == 3
    err = capsys.readouterr().err
    assert "same backend was not kept (dtype: float32 (8 runs), bfloat16 (1 run))" in err
    report = build_report(read_study(study))
    [found] = [f for f in report["validity"]["findings"] if f["level"] == "INVALID"]
    assert run.run_id in found["runs"]
    assert report["comparisons"] == []
    assert any("backend is not the same" in c for c in report["caveats"])


def test_another_machine_is_a_warning(study: Path) -> None:
    run = read_study(study).of("PPO")[1]
    data = json.loads((run.path / "result.json").read_text())
    data["provenance"]["cpu"] = "another"
    (run.path / "result.json").write_text(json.dumps(data))
    assert exit_code(study) == 0
    assert build_report(read_study(study))["validity"]["level"] == "WARN"


def test_a_single_arm_is_no_comparison_but_may_be_invalid(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO"], [0, 1, 2], 8)
    judge(tmp_path / "s", "GRPO", BROKEN, seeds=(0,))
    assert exit_code(tmp_path / "s") == 0
    judge(tmp_path / "s", "GRPO", BROKEN)
    assert exit_code(tmp_path / "s") == 3


def test_the_canary_shows_the_noise_floor(tmp_path: Path) -> None:
    canary = ArmSpec(name="Canary, lr 0", algorithm="grpo", bracket="control", recipe={"lr": 0.0})
    write_fake_study(tmp_path / "s", ["GRPO", "PPO", canary], [0, 1, 2], 8, gains={"Canary, lr 0": 0.0})
    for run in read_study(tmp_path / "s").of("Canary, lr 0"):
        spec: dict[str, Any] = json.loads((run.path / "spec.json").read_text())
        spec["recipe"]["lr"] = 0.0
        (run.path / "spec.json").write_text(json.dumps(spec))
        data = json.loads((run.path / "result.json").read_text())
        (run.path / "result.json").write_text(json.dumps({**data, "base_score": 0.350, "final_score": 0.357}))
    report = build_report(read_study(tmp_path / "s"))
    [floor] = report["validity"]["noise_floor"]
    assert floor["largest"] == pytest.approx(0.007)
    assert (floor["change"]["n"], len(floor["change"]["runs"])) == (3, 3)
    said = "Noise floor: at learning rate 0 (Canary, lr 0, n=3) the score changed by at most 0.007."
    assert said in report["answer"]["details"]
    assert arm(report, "Canary, lr 0")["deviations"][-1] == "recipe.lr: 0.0"
    assert not any("Canary, lr 0" in same for same in report["identical"])
    assert report["answer"]["uncontrolled"], "a canary says nothing about the reward"
    assert not any("recipe is not the same" in c for c in report["caveats"])
