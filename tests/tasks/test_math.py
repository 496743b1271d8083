"""Answers compared by math-verify: outcomes told apart, gold self-test, presets, splits of two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.registry import build_task
from harness.core.types import Grade
from harness.selftest import golds
from tasks.graders import boxed

pytestmark = pytest.mark.system("python:math_verify")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(first: int, count: int) -> list[dict[str, Any]]:
    return [{"question": f"{i} + 1?", "answer": f"It is {i}+1.\n#### 1,{i:03d}"} for i in range(first, first + count)]


def graded(task: Any, answer: str, response: str) -> Grade:
    found = next(
        task.item(s, i) for s in ("train", "validation", "test") for i in range(task.info.sizes[s])
        if task.item(s, i).answer == answer
    )  # fmt: skip
    return task.grade(found, response, "stop")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    golds = ["1/2", r"\frac{3}{4}", r"(1,2)", "???", r"x^2+2x+1", "1,200", r"\text{even}"]
    rows = [{"problem": f"p{i}", "answer": gold} for i, gold in enumerate(golds)]
    return build_task(
        write(tmp_path_factory.mktemp("data") / "m.jsonl", rows), {"prompt": "{problem}", "match": "math"}
    )


@pytest.mark.parametrize(
    ("gold", "response", "why", "extracted"),
    [
        ("1/2", r"so it is \boxed{\frac{1}{2}}", "right", r"\frac{1}{2}"),
        ("1/2", "The final answer is 0.5.", "right", "0.5"),
        ("1/2", r"first $\boxed{2}$, no: $\boxed{1/2}$", "right", "1/2"),
        (r"\frac{3}{4}", r"\boxed{\frac{6}{8}}", "right", r"\frac{6}{8}"),
        (r"(1,2)", r"the point $(2,1)$", "wrong", "(2,1)"),
        (r"x^2+2x+1", r"\boxed{(x+1)^2}", "right", "(x+1)^2"),
        ("1/2", r"\boxed{0.7}", "wrong", "0.7"),
        ("1/2", r"\boxed{50\%}", "right", r"50\%"),
        (r"\frac{3}{4}", r"\boxed{\frac{\sqrt{9}}{4}}", "right", r"\frac{\sqrt{9}}{4}"),
        (r"x^2+2x+1", r"\boxed{x^2+2x+2}", "wrong", "x^2+2x+2"),
        ("1,200", r"It costs \$1200 in total.", "right", "1200"),
        (r"\text{even}", r"\boxed{\text{odd}}", "wrong", r"\text{odd}"),
        ("1/2", "I do not know", "no answer", None),
        ("1/2", "", "no answer", None),
        ("1/2", r"\boxed{\frac{}{}}", "unparsable answer", r"\frac{}{}"),
    ],
)
def test_outcomes(task: Any, gold: str, response: str, why: str, extracted: str | None) -> None:
    grade = graded(task, gold, response)
    assert (grade.why, grade.extracted, grade.correct, grade.failed) == (why, extracted, why == "right", False)
    assert grade.score == float(why == "right")


def test_an_unparsable_gold_abstains(task: Any) -> None:
    grade = graded(task, "???", r"\boxed{7}")
    assert (grade.why, grade.failed, grade.correct) == ("unparsable gold", True, False)
    assert grade.score != grade.score


def test_a_hanging_comparison_is_ended_and_counted(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task._workers, "_limit_s", 2.0)
    grade = graded(task, "1/2", r"$9^{9^{9^{9}}}$")
    assert (grade.failed, grade.score) == (True, 0.0)
    assert "no result within 2 s" in grade.why or "Memory" in grade.why
    assert graded(task, "1/2", r"\boxed{1/2}").correct


def test_the_self_test_reads_every_gold(task: Any, tmp_path: Path) -> None:
    found = golds(task)
    assert (found.items, found.refused, found.accepted) == (7, 1, 0)
    good = golds(build_task(write(tmp_path / "g.jsonl", sums(0, 40)), {"preset": "gsm8k"}))
    assert (good.items, good.misjudged) == (40, 0.0)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_two_files_give_three_splits(tmp_path: Path, suffix: str) -> None:
    train, test = write(tmp_path / f"train{suffix}", sums(0, 60)), write(tmp_path / f"test{suffix}", sums(100, 9))
    task = build_task(train, {"preset": "gsm8k", "test_file": test})
    sizes = task.info.sizes
    assert sizes["test"] == 9
    assert (sizes["train"] or 0) + (sizes["validation"] or 0) == 60
    assert task.item("train", 0).messages[0]["content"].endswith(r"within \boxed{}.")
    assert {task.item("test", i).answer for i in range(9)} == {f"1,{i:03d}" for i in range(100, 109)}
    alone = build_task(train, {"preset": "gsm8k"})
    assert alone.info.data_sha256 != task.info.data_sha256


def test_overlap_is_refused_but_for_case_and_spaces_too(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", sums(0, 60))
    test = write(tmp_path / "test.jsonl", [*sums(100, 3), {"question": "  7  +  1 ", "answer": "#### 8"}])
    with pytest.raises(UsageError, match=r"test.jsonl, line 4 and .*train.jsonl, line 8") as found:
        build_task(train, {"answer_split": "####", "test_file": test})
    assert "same question" in str(found.value)


def test_training_on_the_test_file_is_refused(tmp_path: Path) -> None:
    both = write(tmp_path / "both.jsonl", sums(0, 60))
    with pytest.raises(UsageError, match="in train and in test"):
        build_task(both, {"answer_split": "####", "test_file": both})


def test_a_local_dataset_folder_loads_like_one_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", sums(0, 30))
    write(tmp_path / "test.jsonl", sums(50, 5))
    task = build_task(f"hf:{tmp_path}", {"preset": "gsm8k", "test_split": "test"})
    assert task.info.sizes["test"] == 5
    with pytest.raises(UsageError, match="cannot be loaded"):
        build_task(f"hf:{tmp_path}", {"split": "nowhere"})


def test_nested_columns_and_boxed_solutions(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"p{i}"}], "reward_model": {"ground_truth": str(i)}} for i in range(9)
    ]
    nested = build_task(write(tmp_path / "n.parquet", rows), {"preset": "dapo-math"})
    assert nested.item("train", 0).messages[0]["content"] == f"p{nested.item('train', 0).answer}"
    solved = [{"problem": f"p{i}", "solution": rf"a \boxed{{1}}, then \boxed{{\frac{{{i}}}{{7}}}}."} for i in range(9)]
    task = build_task(write(tmp_path / "s.jsonl", solved), {"preset": "math"})
    assert task.item("train", 0).answer.startswith(r"\frac{")
    with pytest.raises(UsageError, match=r"s.jsonl, line 10: field solution\n.*no \\boxed"):
        build_task(write(tmp_path / "s.jsonl", [*solved, {"problem": "p", "solution": "none"}]), {"preset": "math"})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"preset": "gsm8"}, "one of: gsm8k, math"),
        ({"preset": "gsm8k", "extract": "tags"}, "reads boxed expressions"),
        ({"preset": "gsm8k", "test_file": "nowhere.jsonl"}, "no such file"),
        ({"preset": "aime24"}, r"line 1 has the fields question, answer"),
        ({"answer_split": "####", "match": "maths"}, "one of: numeric, exact, math"),
    ],
)
def test_bad_parameters(tmp_path: Path, params: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        build_task(write(tmp_path / "d.jsonl", sums(0, 30)), params)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        build_task(str(tmp_path / "x.parquet"), {})
    write(tmp_path / "r.parquet", [{"question": "q", "answer": "1"}, {"question": "r", "answer": None}])
    with pytest.raises(UsageError, match=r"r.parquet, row 2: field answer\n.*null"):
        build_task(str(tmp_path / "r.parquet"), {})


def test_boxed() -> None:
    assert boxed(r"\boxed{1} and \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed(r"so \boxed 5$.") == "5"
    assert boxed(r"\fbox{x}") == "x"
    assert boxed(r"\boxed{1") is None
    assert boxed("none") is None


@pytest.mark.parametrize(
    "gold", ["18", "-3", "007", "1,200", r"\frac{3}{7}", r"x^2+1", r"(1,\frac{\pi}{2})", "50\\%", "???", "2.0"]
)
@pytest.mark.parametrize(
    "answer", ["18", "-3", "7", "+18", "1200", r"\frac{3}{7}", "x^2+1", "0.5", "???", "", r"18\%", "2"]
)
def test_a_verdict_at_sight_is_the_parsers(gold: str, answer: str) -> None:
    from tasks.graders import mathematics

    response = f"\\boxed{{{answer}}}"
    assert mathematics.verdict(gold, response)["outcome"] == mathematics.by_parsing(gold, response)["outcome"]


def test_which_verdicts_take_no_parser() -> None:
    from tasks.graders import mathematics

    at_sight = mathematics._at_sight
    assert at_sight("18", r"\boxed{018}") == {"outcome": "right", "extracted": "018"}
    assert at_sight("18", r"\boxed{19}") == {"outcome": "wrong", "extracted": "19"}
    assert at_sight("x+1", r"\boxed{x+1}") == {"outcome": "right", "extracted": "x+1"}
    for gold, response in (
        ("18", "18"),
        ("18", r"\boxed{18.0}"),
        ("???", r"\boxed{???}"),
        ("1", r"\boxed{1}\boxed{1}"),
    ):
        assert at_sight(gold, response) is None
