"""The known right and wrong responses of the bundled tasks, for the start-up check of the verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.registry import build_task


def check(task: Any) -> tuple[int, int]:
    """(right, wrong) cases, all judged as declared."""
    counts = [0, 0]
    for split in ("train", "validation"):
        for index in range(2):
            prompt = task.item(split, index)
            cases = task.self_test_cases(prompt)
            assert len({text for text, _ in cases}) == len(cases)
            for text, correct in cases:
                assert task.grade(prompt, text, "stop").correct == correct, (prompt, text)
                counts[not correct] += 1
    return counts[0], counts[1]


@pytest.mark.parametrize("name", ["chain", "chain-long"])
@pytest.mark.parametrize("params", [{}, {"reward": "graded"}, {"reward": "tempting"}, {"credit": False}])
def test_chain(name: str, params: dict[str, Any]) -> None:
    assert check(build_task(name, params)) == (12, 12)


@pytest.mark.parametrize(
    ("answers", "params", "expected"),
    [
        (["4", "1,200", "7/2", "-3", "50%", "1e3", ".5"], {}, (4, 8)),
        (["4", "5", "6", "7", "8"], {"extract": "tags"}, (4, 8)),
        (["red", "not red", "a blue one", "10 Downing St."], {}, (4, 8)),
        (["red", "blue", "green", "10 Downing St."], {"extract": "tags"}, (4, 8)),
        (["4", "5", "6", "7"], {"extract": "regex:answer is (\\d+)"}, (0, 4)),
    ],
)
def test_jsonl(tmp_path: Path, answers: list[str], params: dict[str, Any], expected: tuple[int, int]) -> None:
    file = tmp_path / "q.jsonl"
    rows = [{"question": f"question {i}", "answer": answers[i % len(answers)]} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(build_task(str(file), params)) == expected


def test_a_file_whose_answers_cannot_be_read_is_found(tmp_path: Path) -> None:
    """Words, read as numbers: no response could be right."""
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"question": f"q {i}", "answer": "four"}) + "\n" for i in range(60)))
    task: Any = build_task(str(file), {"match": "exact", "extract": "last_number"})
    prompt = task.item("train", 0)
    [right, *_] = task.self_test_cases(prompt)
    assert right[1]
    assert not task.grade(prompt, right[0], "stop").correct


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("chain_sum", {}, (4, 8)),
        ("chain_sum", {"extract": "tags"}, (4, 8)),
        ("word_sorting", {}, (4, 8)),
        ("prime_factorization", {}, (4, 8)),  # its verifier raises on words
        ("propositional_logic", {}, (0, 8)),  # has no answer of its own
    ],
)
def test_reasoning_gym(name: str, params: dict[str, Any], expected: tuple[int, int]) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `reasoning-gym` is not installed")
    assert check(build_task(f"reasoning_gym:{name}", params)) == expected
