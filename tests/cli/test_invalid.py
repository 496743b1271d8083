"""A comparison whose verifier cannot read its own answers: real runs, from the command line to exit code 3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.results import read_study
from tests.cli.test_usage import run


def test_a_verifier_that_refuses_right_answers_ends_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{a} +{b} -{c} ?", "answer": "#"} for a in range(10) for b in range(1, 6) for c in (1, 2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.chdir(tmp_path)
    code = run(
        monkeypatch, "compare", "-a", "grpo,gspo", "--seeds", "1", "--steps", "1", "--no-mlflow", "--parallel", "2",
        "--task", "q.jsonl", "-t", "match=exact", "-t", "extract=last_number", "-s", "recipe.prompts_per_step=2",
        "-s", "eval.prompts=2", "-s", "eval.final_prompts=2", "-s", "eval.points=0",
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 3, err
    assert "error: the comparison is INVALID, nothing is ranked: the set-up of 2 of 2 runs is INVALID" in err
    assert "set-up GRPO, seed 0: INVALID verifier" in err, "told while it runs"
    assert "the comparison is INVALID and nothing is ranked" in " ".join(out.split())
    [study] = (tmp_path / "results").iterdir()
    for found in read_study(study).runs:
        assert found.result is not None
        assert (found.result.status, found.result.validity) == ("completed", "INVALID")
    again = run(monkeypatch, "report", str(study))
    assert again == 3
    assert run(monkeypatch, "report", str(study), "--json") == 3
    assert "INVALID" in (study / "report" / "report.md").read_text()
