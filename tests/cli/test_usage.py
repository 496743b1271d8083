"""Wrong input ends with one message, exit code 2 and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [json.dumps({"q": f"what is {i}", "a": str(i)}) for i in range(60)]
    (tmp_path / "good.jsonl").write_text("\n".join(rows))
    (tmp_path / "line37.jsonl").write_text("\n".join([*rows[:36], '{"q": oops', *rows[37:]]))
    (tmp_path / "no_answers.jsonl").write_text("\n".join(json.dumps({"q": f"what is {i}"}) for i in range(60)))
    (tmp_path / "no_model").mkdir()
    (tmp_path / "no_model" / "config.json").write_text("{}")
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-a", "grpoo"], ["grpoo", "did you mean grpo"]),
        (["-s", "surrogat.high=0.3"], ["surrogat.high", "surrogate.high"]),
        (["-s", "GRPO:surrogate.hi=0.3"], ["surrogate.hi", "surrogate.high"]),
        (["-s", "GRPO:surrogate.high=0.27"], ["changes nothing"]),
        (["-s", "surrogate.low=-1"], ["surrogate", "greater than or equal to 0"]),
        (["-s", "recipe.lrr=1"], ["lrr", "did you mean lr"]),
        (["-s", "nosign"], ["path=value"]),
        (["--task", "no_answers.jsonl", "--prompt", "{q}", "--answer-field", "a"], ["line 1", "field a", "fields q"]),
        (["--task", "line37.jsonl", "--prompt", "{q}", "--answer-field", "a"], ["line 37", "not JSON"]),
        (["--task", "good.jsonl", "--prompt", "{q}", "--answer-field", "a"], ["cannot encode", "chain"]),
        (["--task", "good.jsonl", "--prompt", "{z}", "--answer-field", "a"], ["{z}"]),
        (["--task", "nothere.jsonl", "--prompt", "{q}", "--answer-field", "a"], ["nothere.jsonl"]),
        (["--task", "chains"], ["chains", "did you mean chain"]),
        (["-t", "max_op=3"], ["max_op", "max_ops"]),
        (["--model", "./no_model", "-a", "grpo"], ["no_model", "cannot be read"]),
        (["--model", "./nothere", "-a", "grpo"], ["no such folder"]),
        (["-a", "grpo", "-s", "siblings=1"], ["siblings=1", "ppo"]),
        (["-a", "gfpo", "-s", "selection.k=17"], ["k=17", "G=16"]),
        (["--steps", "0"], ["0 steps"]),
        (["--tokens", "0"], ["0 sampled_tokens"]),
        (["--steps", "1", "--tokens", "5"], ["one of them"]),
        (["--seeds", "x"], ["--seeds x"]),
        (["--seeds", "0"], ["--seeds 0"]),
        (["--preset", "xyz"], ["xyz", "quick"]),
        (["--roster", "foo"], ["foo", "matched"]),
        (["--dtype", "float8"], ["float8", "bfloat16"]),
        (["--results", "a_file/x"], ["a_file", "cannot be written"]),
        (
            ["-a", "gspo_token", "--task", "reasoning_gym:chain_sum"],
            ["identical to GSPO", "--run-equivalent"],
        ),
        (["-a", "grpo_process", "--task", "reasoning_gym:chain_sum"], ["process rewards"]),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_compare_refuses(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    before = sorted(files.rglob("*"))
    assert run(monkeypatch, "compare", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for word in ("error:", "why:", "instead:", *words):
        assert word in said, said
    assert sorted(files.rglob("*")) == before


def test_report_of_no_study(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "report", str(files)) == 2
    assert "no study.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["algorithms", "arms", "parts", "tasks", "models", "metrics", "presets", "studies"])
def test_lists(what: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "list", what, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert bool(rows) == (what != "studies")


def test_dry_run_writes_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "compare", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["todo"] == 24
    assert plan["probe"]["prompt"].endswith("?")
    assert plan["disk"]["checkpoint_bytes"] == 2 * 12 * plan["probe"]["parameters"], "PPO has a critic"
    assert plan["disk"]["after"] == 3 < plan["disk"]["under_way"] < 25
    assert not (files / "results").exists()


def test_a_warning_is_one_line_and_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import warnings; from harness.cli import said_once; said_once(); warn = warnings.warn; warn('k'); warn('k')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().err == "warning: k\n"


def test_help_begins_with_what_a_user_begins_with() -> None:
    names = [command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands]
    assert names[0] == "compare"
    assert len(names) == len(set(names))
