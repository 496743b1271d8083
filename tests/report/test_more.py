"""What stands on the page only where there is data: tuning, stable regions, reward parts, phases, torn folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.results import read_study
from harness.core.spec import ArmSpec
from harness.report import build_report, write_report
from harness.report.plots import evidence_plots, regions
from harness.report.rules import ReportRuleError, check_rules
from tests.cli.test_usage import run
from tests.fakes.run_folders import write_fake_study
from tests.report.test_report import parse

SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 5, "note": None}


def test_default_and_tuned_stand_side_by_side_with_their_trials(tmp_path: Path) -> None:
    final = tmp_path / "tune-x" / "final"
    write_fake_study(final, ["GRPO", "PPO"], [0, 1, 2], 4)
    algorithms = [
        {"arm": arm, "default": {"test_score": SCORE}, "tuned": {"test_score": {**SCORE, "value": 0.55}},
         "difference": {**SCORE, "value": 0.05}, "counts": {"complete": 20, "collapsed": 3},
         "best_of": [0.3, 0.4, 0.45]}
        for arm in ("GRPO", "PPO")
    ]  # fmt: skip
    data = {"name": "tune-x", "trials_each": 20, "tuning_seeds": [1000, 1001], "algorithms": algorithms}
    (tmp_path / "tune-x" / "report").mkdir()
    (tmp_path / "tune-x" / "report" / "tuning.json").write_text(json.dumps(data))
    files = write_report(final, draw=False)
    report, page = json.loads(files["json"].read_text()), parse(files["html"])
    row = next(r for r in page.rows if r[0] == "PPO" and len(r) == 6)
    assert [c.split()[0] for c in row[1:]] == ["0.500", "0.550", "+0.050", "20", "0.450"]
    assert any(c.startswith("Tuning: 20 trials for each") for c in report["caveats"])
    assert "best-of" in [p["plot"].name for p in evidence_plots(report)]
    report["tuning"]["arms"][0]["trials"] = None
    with pytest.raises(ReportRuleError, match="R11"):
        check_rules(report)


def test_a_study_over_learning_rates_and_updates_shows_its_stable_region(tmp_path: Path) -> None:
    arms = [
        ArmSpec(name=f"GRPO {lr:g}", algorithm="grpo", roster="stressed", recipe={"lr": lr})
        for lr in (1e-4, 1e-3, 1e-2)
    ]
    write_fake_study(tmp_path / "s", arms, [0, 1], 10, collapsed=[("GRPO 0.01", 0), ("GRPO 0.01", 1)])
    for found in read_study(tmp_path / "s").runs:
        spec = json.loads((found.path / "spec.json").read_text())
        spec["recipe"]["lr"] = float(spec["arm"].split()[1])
        (found.path / "spec.json").write_text(json.dumps(spec))
        result = json.loads((found.path / "result.json").read_text())
        result["algorithm_resolved"]["updates"] = {"mini_batches": 4, "epochs": 1}
        (found.path / "result.json").write_text(json.dumps(result))
    report = build_report(read_study(tmp_path / "s"))
    assert regions(report) == {"grpo": {(1e-4, 4): (0, 2), (1e-3, 4): (0, 2), (1e-2, 4): (2, 2)}}
    assert "region-grpo" in [p["plot"].name for p in evidence_plots(report)]


def test_parts_of_the_reward_and_phases_of_a_step(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO"], [0, 1, 2], 6)
    for found in read_study(tmp_path / "s").runs:
        rows = [
            {**r, "reward/component/score of format": 0.25, "perf/t_gen": 3.0, "perf/t_update": 1.0}
            for r in found.steps
        ]
        (found.path / "steps.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = write_report(tmp_path / "s", draw=False)
    report = json.loads(files["json"].read_text())
    panel = report["panels"][-1]
    assert (panel["title"], panel["unit"]) == ("Part of the reward", "score of format")
    assert set(panel["means"]["GRPO"]["y"]) == {0.25}
    phases = report["arms"][0]["phases"]
    assert (phases["generation"]["value"], phases["updates"]["value"]) == (3.0, 1.0)
    assert "Time of a step by phase" in parse(files["html"]).text


def test_finished_runs_without_steps_or_evaluations_are_named(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 6, failed=[("PPO", 0)])
    first, second, _ = (r.path for r in read_study(tmp_path / "s").of("GRPO"))
    (first / "steps.jsonl").unlink()
    (second / "evals.jsonl").unlink()
    report = build_report(read_study(tmp_path / "s"))
    [said] = [c for c in report["caveats"] if c.startswith("Records:")]
    assert f"{first.name} (steps.jsonl), {second.name} (evals.jsonl)." in said
    assert len(report["arms"][0]["score"]["runs"]) == 3, "the score of result.json counts"


def test_half_written_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 6)
    first, second, third = (r.path for r in read_study(tmp_path / "s").of("PPO"))
    (first / "spec.json").unlink()
    with (second / "steps.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "ste')  # torn last line
    assert run(monkeypatch, "report", str(tmp_path / "s"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torn"] == [first.name]
    assert any(first.name in c and "no spec.json" in c for c in report["caveats"])
    assert report["tally"]["missing"] == 1
    (third / "result.json").write_text('{"schema_version": 1, "run')
    assert run(monkeypatch, "report", str(tmp_path / "s")) == 2
    assert f"{third / 'result.json'}: not JSON" in capsys.readouterr().err
    (third / "result.json").write_text('{"schema_version": 7}')
    assert run(monkeypatch, "report", str(tmp_path / "s")) == 2
    assert "schema_version 7\n  why:     this version of the harness reads schema_version 1" in capsys.readouterr().err
    (third / "result.json").unlink()
    (third / "steps.jsonl").write_text('{"schema_version": 9, "step": 1}\n')
    assert run(monkeypatch, "report", str(tmp_path / "s")) == 2
    assert "row 1: schema_version 9" in capsys.readouterr().err
    (third / "steps.jsonl").write_text('{"schema_version": 1}\n')
    assert run(monkeypatch, "report", str(tmp_path / "s")) == 2
    assert "row 1 has no whole-number step" in capsys.readouterr().err
