"""The benchmark table: base model once, arms over runs, gains paired by question; and the same in MLflow's terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.backends.trackers.entries import benchmark_points
from harness.core.benchmarks import BenchmarkRow, Scored, add_benchmarks, read_benchmarks
from harness.core.results import QuestionScore, read_study
from harness.report import html, markdown
from harness.report.benchmarks import benchmarks
from harness.report.build import build_report
from harness.stats.passes import over_questions, pass_at
from tests.fakes.run_folders import write_fake_study

SETTINGS = {"engine": "hf", "dtype": "float32", "temperature": 1.0, "max_new_tokens": 512}


def row(correct: list[int], role: str, step: int) -> BenchmarkRow:
    """Four questions with two samples each."""
    average = over_questions([c / 2 for c in correct], "avg@2")
    passes = over_questions([pass_at(2, 2, c) for c in correct], "pass@2")
    return BenchmarkRow.model_validate({
        "model": "m", "role": role, "step": step, "checkpoint": "last" if role == "run" else None,
        "benchmark": "gsm8k", "samples": 2, "lm_eval": average.value, "cut_off": 0.25, "failed": 0,
        "questions": [QuestionScore(id=str(i), n=2, correct=c) for i, c in enumerate(correct)],
        "avg_at_k": Scored(**average.as_dict()), "pass_at_k": Scored(**passes.as_dict()), "settings": SETTINGS,
        "data_sha256": "d", "template_sha256": "t", "outputs": "o.jsonl",
    })  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "demo"
    write_fake_study(folder, arms=("PPO", "GRPO"), seeds=(0, 1, 2), steps=6)
    base = row([0, 0, 1, 2], "base", 0)
    for run in read_study(folder).of("GRPO"):
        own = {0: [1, 0, 2, 2], 1: [1, 1, 2, 2], 2: [0, 0, 1, 2]}[run.spec.seed]
        add_benchmarks(run.path, [base, row(own, "run", 6)])
    return folder


def test_arms_over_runs_and_the_base_model_over_questions(scored: Path) -> None:
    report = build_report(read_study(scored))
    base, arm = report["benchmarks"]
    assert (base["model"], base["avg_at_k"]["value"], base["avg_at_k"]["n"]) == ("base model", 0.375, 4)
    assert (arm["model"], len(arm["runs"]), arm["avg_at_k"]["n"]) == ("GRPO", 3, 3)
    assert arm["avg_at_k"]["value"] == pytest.approx((5 + 6 + 3) / 3 / 8)
    assert arm["gain"]["n"] == 4  # questions
    assert arm["gain"]["value"] == pytest.approx(arm["avg_at_k"]["value"] - 0.375)
    assert arm["gain"]["low"] < arm["gain"]["value"] < arm["gain"]["high"]
    text = markdown.render(report)
    assert "## Benchmarks" in text
    assert "gsm8k: avg@2, temperature 1, at most 512 tokens, hf in float32" in text
    assert "3 x 4" in text
    assert "<h2>Benchmarks</h2>" in html.render(report)


def test_a_study_without_scores_has_no_table(tmp_path: Path) -> None:
    write_fake_study(tmp_path / "demo", arms=("PPO", "GRPO"), seeds=(0, 1), steps=4)
    report = build_report(read_study(tmp_path / "demo"))
    assert benchmarks(report)["groups"] == []
    assert "Benchmarks" not in html.render(report)


def test_mlflow_gets_the_base_model_at_step_0_and_the_run_at_its_checkpoint(scored: Path) -> None:
    run = read_study(scored).of("GRPO")[0]
    points = {(p.key, p.step): p.value for p in benchmark_points(read_benchmarks(run.path), 1000)}
    assert points["eval/gsm8k/avg_at_2", 0] == 0.375
    assert points["eval/gsm8k/avg_at_2", 6] == 0.625
    assert points["eval/gsm8k/pass_at_2", 6] == 0.75
