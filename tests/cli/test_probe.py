"""`harness probe`: sampled once, continued after an interruption, its numbers recomputed from the file it writes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.core.errors import UsageError

OPTIONS = ["--threads", "1", "--dtype", "float32", "--device", "cpu"]


def probe(folder: Path, *more: str) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["probe", "--out", str(folder), "--json", *OPTIONS, *more], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout.strip().splitlines()[-1])


def test_a_probe_is_resumed_and_adds_up(tmp_path: Path) -> None:
    sums = [(a, b, c, d) for a in range(10) for b in (1, 2, 3) for c in (4, 5) for d in (1,)]  # words that `tiny` knows
    rows = [{"question": f"{a} +{b} -{c} +{d} ?", "answer": str((a + b - c + d) % 10)} for a, b, c, d in sums]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = ["--task", str(data), "--prompts", "10", "--samples", "4", "--keep", "0,1", "-s", "recipe.max_new_tokens=8"]
    found = probe(tmp_path / "p", *asked)
    file = tmp_path / "p" / "probe.jsonl"
    lines = file.read_text().splitlines()
    sampled = [json.loads(line) for line in lines]
    assert [row["index"] for row in sampled] == list(range(10))
    assert found["pass_at"]["1"]["value"] == pytest.approx(fmean(row["correct"] / 4 for row in sampled))
    assert found["pass_at"]["4"]["value"] == pytest.approx(fmean(row["correct"] > 0 for row in sampled))
    assert found["unreadable"] == sum(row["unreadable"] for row in sampled) / 40
    kept = [json.loads(line) for line in (tmp_path / "p" / "filtered.jsonl").read_text().splitlines()]
    assert {row["question"]: row["answer"] for row in kept}.items() <= {
        r["question"]: r["answer"] for r in rows
    }.items()
    file.write_text("\n".join(lines[:6]) + "\n" + lines[6][:20])  # killed while it wrote
    assert probe(tmp_path / "p", *asked) == found
    assert file.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--keep", "0.9,0.1"], "two pass rates"),
        (["--keep", "some"], "two pass rates"),
        (["--samples", "1"], "at least 1 prompt and 2 samples"),
        (["--split", "tset"], "did you mean test"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, more: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        CliRunner().invoke(app, ["probe", "--out", str(tmp_path), *more], catch_exceptions=False)
