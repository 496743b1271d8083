"""Logs of TRL, verl and CSV files become runs of a comparison, with their flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.results import read_run, read_study
from harness.report import build_report
from tests.cli.test_usage import run
from tests.fakes.run_folders import write_fake_study

TRL: dict[str, Any] = {
    "global_step": 4,
    "log_history": [
        {"step": 0, "eval_accuracy": 0.25, "eval_runtime": 1.0},
        *({"step": s, "reward": 0.1 * s, "reward_std": 0.4, "entropy": 0.5, "frac_reward_zero_std": 0.3,
           "completions/mean_length": 10.0, "completions/clipped_ratio": 0.1, "learning_rate": 1e-5, "step_time": 2.0,
           "num_tokens": 999.0, "clip_ratio/region_mean": 0.2} for s in range(1, 5)),
        {"step": 4, "eval_accuracy": 0.5}, {"step": 4, "train_runtime": 9.0},
    ],
}  # fmt: skip


def command(monkeypatch: pytest.MonkeyPatch, source: Path, study: Path, *more: str, form: str = "trl") -> int:
    return run(
        monkeypatch, "import", str(source), "--format", form, "--study", str(study), "--arm", "GRPO (out)", *more
    )


def trl(path: Path) -> Path:
    (path / "trainer_state.json").write_text(json.dumps(TRL))
    return path / "trainer_state.json"


def test_a_run_of_trl_joins_a_comparison_with_its_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_study(tmp_path / "s", ["GRPO", "PPO"], [0, 1, 2], 4)
    for seed in ("0", "1", "2"):
        options = ("--seed", seed, "--score", "eval_accuracy", "--responses", "410", "--algorithm", "grpo")
        assert command(monkeypatch, trl(tmp_path), tmp_path / "s", *options) == 0
    said = capsys.readouterr().out
    assert "taken   completions/mean_length as len/mean" in said
    assert "left    reward_std: mean over groups of their SD; ours is the SD of the batch" in said
    assert "left    clip_ratio/region_mean: counts sequences" in said
    study = read_study(tmp_path / "s")
    found = study.of("GRPO (out)")[0]
    assert found.result is not None
    assert (found.result.base_score, found.result.final_score, found.result.sampled_tokens) == (0.25, 0.5, 16400)
    assert [row["sampled_tokens_cum"] for row in found.steps] == [4100, 8200, 12300, 16400]
    assert found.steps[-1]["reward/mean"] == pytest.approx(0.4)
    assert found.steps[-1]["wallclock_s"] == 8.0
    assert found.steps[-1]["reward/std"] is None
    assert found.steps[-1]["clip/tok_any/last"] is None
    report = build_report(study)
    assert report["validity"]["reason"] is None
    assert any(c["a"] == "GRPO (out)" and c["n"] == 3 for c in report["comparisons"])
    flags = [f for f in report["validity"]["findings"] if f["check"] == "imported"]
    assert [f["arm"] for f in flags] == ["GRPO (out)"]
    assert len(flags[0]["runs"]) == 3
    assert "imported, GRPO (out) (3 runs)" in " ".join(report["answer"]["details"])


def test_verl_counts_batches_and_its_first_validation_is_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"step": 0, "data": {"val-core/acc/mean@1": 0.1}}]
    rows += [{"step": s, "data": {"critic/score/mean": 0.2, "response_length/mean": 5.0, "actor/pg_clipfrac": 0.3,
                                  "critic/rewards/mean": 0.7, "timing_s/step": 1.5}} for s in (1, 2)]  # fmt: skip
    rows[2]["data"]["val-core/acc/mean@1"] = 0.4
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 3, "da')
    options = ("--seed", "4", "--score", "val-core/acc/mean@1", "--responses", "16", "--task", "gsm8k", "--model", "m")
    assert command(monkeypatch, tmp_path / "v.jsonl", tmp_path / "new", *options, form="verl") == 0
    [found] = read_study(tmp_path / "new").runs
    assert found.result is not None
    assert (found.result.base_score, found.result.final_score) == (0.1, 0.4)
    assert found.steps[-1]["sampled_tokens_cum"] == 2 * 16 * 5
    assert found.steps[-1]["reward/shaped_mean"] is None, "verl's is after the KL in the reward"
    assert run(monkeypatch, "report", str(tmp_path / "new")) == 0


def test_a_csv_has_columns_of_the_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.csv").write_text(
        "step,sampled_tokens_cum,entropy/exact,acc,mood\n1,100,0.5,,\n2,210,0.25,0.75,good\n"
    )
    options = ("--seed", "0", "--score", "acc", "--task", "t", "--model", "m", "--collapsed")
    assert command(monkeypatch, tmp_path / "r.csv", tmp_path / "s", *options, form="csv") == 0
    [folder] = (tmp_path / "s" / "runs").iterdir()
    found = read_run(folder)
    assert [row["entropy/exact"] for row in found.steps] == [0.5, 0.25]
    assert found.result is not None
    assert (found.result.status, found.result.final_score, found.result.sampled_tokens) == ("collapsed", 0.75, 210)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "0", "--task", "t", "--model", "m"], "the sampled tokens are unknown"),
        (["--seed", "0", "--responses", "8"], "no such study, and no --task and --model"),
        (
            ["--seed", "0", "--responses", "8", "--task", "t", "--model", "m", "--score", "accuracy"],
            "no entry of the log",
        ),
        (["--seed", "0", "--responses", "8", "--task", "t", "--model", "m", "--score", "num_tokens"], "share of right"),
        (["--seed", "0", "--responses", "0"], "--responses 0"),
    ],
)
def test_what_cannot_be_imported_is_said_before_anything_is_written(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, trl(tmp_path), tmp_path / "s", *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_seed_is_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--seed", "0", "--responses", "8", "--task", "t", "--model", "m")
    assert command(monkeypatch, trl(tmp_path), tmp_path / "s", *options) == 0
    assert command(monkeypatch, trl(tmp_path), tmp_path / "s", *options) == 2
    assert "has a run of seed 0 already" in capsys.readouterr().err
    assert command(monkeypatch, trl(tmp_path), tmp_path / "s", *options, form="wandb") == 2
