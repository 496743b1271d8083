"""The user's reward function: values, named parts, failures that count, mistakes that are told before a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask
from harness.core.registry import build_task

CODE = """
def score(prompt, response, answer):
    if response == "hang":
        while True: pass
    if response == "raise":
        raise KeyError("no such thing")
    if response == "large":
        return 7
    if response == "text":
        return {"correct": "yes"}
    return {"correct": float(answer in response), "format": 0.5 * response.startswith("#"), "extracted": response[-1:]}

def plain(prompt, response, answer):
    return prompt.endswith("?") and answer in response

def total(prompt, response, answer):
    return {"score": 0.25, "brevity": -3.0}

def wrong_signature(prompt):
    return 1.0
"""


def task(folder: Path, function: str = "score", **params: Any) -> SingleTurnTask:
    (folder / "mine.py").write_text(CODE)
    given = {
        "reward_function": f"{folder / 'mine.py'}:{function}",
        "reward_range": "0,2",
        "reward_seconds": 1.0,
        **params,
    }
    made = build_task("chain", given)
    assert isinstance(made, SingleTurnTask)
    return made


def test_components_stay_apart_and_failures_abstain(tmp_path: Path) -> None:
    made = task(tmp_path, reward_threshold=1.5)
    assert made.info.components == ("correct", "format")
    assert (made.info.reward_range, made.info.threshold) == ((0.0, 2.0), 1.5)
    item = made.item("train", 0)
    texts = [f"# {item.answer}", item.answer, "hang", "raise", "large", "text", ""]
    grades = made.grade_many([Response(prompt=item, text=t, finish_reason="stop") for t in texts])
    assert [g.score for g in grades[:2]] == [1.5, 1.0]
    assert [g.correct for g in grades] == [True, *[False] * 6]
    assert grades[0].components == {"correct": 1.0, "format": 0.5}
    assert grades[0].extracted == item.answer
    assert [g.failed for g in grades] == [False, False, True, True, True, True, False]
    assert all(math.isnan(g.score) for g in grades[2:6])
    assert grades[2].why == "time limit: no result within 1 s"
    assert "KeyError: 'no such thing' (mine.py, line 6)" in grades[3].why
    assert "7 lies outside [0, 2]" in grades[4].why
    assert "correct is str" in grades[5].why


def test_floats_booleans_and_totals(tmp_path: Path) -> None:
    plain = task(tmp_path, "plain", reward_range="0,1")
    item = plain.item("train", 0)
    assert plain.grade(item, item.answer, "stop").correct
    assert plain.info.components == ()
    total = task(tmp_path, "total").grade(item, "x", "stop")
    assert (total.score, total.components) == (0.25, {"brevity": -3.0})


def test_the_function_belongs_to_the_identity_of_the_data(tmp_path: Path) -> None:
    one = task(tmp_path).info.data_sha256
    assert one == task(tmp_path).info.data_sha256
    (tmp_path / "mine.py").write_text(CODE + "\n# another version\n")
    assert (
        one
        != build_task(
            "chain", {"reward_function": f"{tmp_path / 'mine.py'}:score", "reward_range": "0,2"}
        ).info.data_sha256
    )


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"reward_function": "mine.py"}, "names no function"),
        ({"reward_function": "nowhere.py:score"}, "no file"),
        ({"reward_range": "1,0"}, "range is empty"),
        ({"reward_range": "1"}, "not two numbers"),
        ({"reward_threshold": 3}, "never or always"),
        ({"reward_seconds": 0}, "no time limit"),
        ({"reward_seconds": "soon"}, "not a finite number"),
        ({"function": "missing"}, r"has no function missing; it has plain, score"),
        ({"function": "wrong_signature"}, r"no reward for the first question: error: TypeError"),
        ({"min_opps": 3}, "did you mean min_ops"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        task(tmp_path, **params)
