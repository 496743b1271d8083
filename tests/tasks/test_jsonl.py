"""`<file>.jsonl`: good files work, bad ones are refused with file, line, field and a way out."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Split
from harness.core.registry import build_task
from tasks.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def write(folder: Path, rows: list[Any], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(count)]


def contents(task: Any, split: Split) -> list[str]:
    return [task.item(split, i).messages[0]["content"] for i in range(task.info.sizes[split])]


def test_defaults_read_questions_and_numbers(tmp_path: Path) -> None:
    task = build_task(write(tmp_path, questions(300)), {})
    assert (task.match, task.extract) == ("numeric", "last_number")
    assert sum(task.info.sizes[split] for split in SPLITS) == 300
    prompt = task.item("test", 0)
    assert task.grade(prompt, f"So it is {prompt.answer}.", "stop").correct
    assert not task.grade(prompt, f"So it is {int(prompt.answer) + 1}.", "stop").correct
    assert task.grade(prompt, "no idea", "stop").why == "no answer"


def test_splits_are_disjoint_complete_and_by_content(tmp_path: Path) -> None:
    task = build_task(write(tmp_path, questions(300)), {})
    parts = {split: contents(task, split) for split in SPLITS}
    assert sorted(chain.from_iterable(parts.values())) == sorted(row["question"] for row in questions(300))
    assert all(split_of(content) == split for split, part in parts.items() for content in part)


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    one = build_task(write(tmp_path, questions(60), "one.jsonl"), {})
    two = build_task(write(tmp_path, questions(60)[::-1], "two.jsonl"), {})
    for split in SPLITS:
        assert contents(one, split) == contents(two, split)


@pytest.mark.parametrize("count", [3, 4, 10, 25])
def test_no_split_of_a_small_file_is_empty(tmp_path: Path, count: int) -> None:
    task = build_task(write(tmp_path, questions(count)), {})
    assert all(task.info.sizes[split] for split in SPLITS)
    assert sum(task.info.sizes[split] for split in SPLITS) == count


def test_gold_is_correct_and_another_items_gold_is_not(tmp_path: Path) -> None:
    path = write(tmp_path, questions(50))
    for params in ({}, {"match": "exact"}, {"extract": "tags"}):
        task = build_task(path, params)
        prompts = [task.item("train", i) for i in range(20)]
        for prompt, other in pairwise(prompts):
            assert task.grade(prompt, task.gold(prompt), "stop").correct
            assert not task.grade(prompt, task.gold(other), "stop").correct


def test_two_field_prompts_float_answers_and_ids(tmp_path: Path) -> None:
    rows = [{"Body": f"{i} apples.", "Question": "How many?", "Answer": float(i), "ID": f"n-{i}"} for i in range(30)]
    task = build_task(
        write(tmp_path, rows), {"prompt": "{Body} {Question}", "answer_field": "Answer", "id_field": "ID"}
    )
    prompt = task.item("train", 0)
    assert prompt.messages[0]["content"].endswith("apples. How many?")
    assert prompt.id == f"n-{prompt.answer}"
    assert task.grade(prompt, prompt.answer, "stop").correct


def test_worked_solutions_are_split(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"it is {i}+1\n#### 1,{i:03d}"} for i in range(30)]
    task = build_task(write(tmp_path, rows), {"answer_split": "####"})
    prompt = task.item("train", 0)
    assert task.match == "numeric"
    assert task.grade(prompt, f"first 3, then {prompt.answer.replace(',', '')}", "stop").correct
    with pytest.raises(UsageError, match="worked solution"):
        build_task(write(tmp_path, rows), {})


def test_text_answers_match_exactly(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"Word {i}"} for i in range(30)]
    task = build_task(write(tmp_path, rows), {})
    prompt = task.item("train", 0)
    assert (task.match, task.extract) == ("exact", "all")
    assert task.grade(prompt, f" {prompt.answer.lower()}.", "stop").correct
    by_regex = build_task(write(tmp_path, rows), {"extract": r"regex:is: (.+?);"})
    assert by_regex.grade(prompt, f"is: x; is: {prompt.answer}; done", "stop").correct
    assert by_regex.grade(prompt, prompt.answer, "stop").why == "no answer"


def test_equal_lines_count_once_and_blank_lines_not_at_all(tmp_path: Path) -> None:
    path = Path(write(tmp_path, questions(30) + questions(30)))
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\r\n"), encoding="utf-8")
    assert sum(build_task(str(path), {}).info.sizes[split] for split in SPLITS) == 30


def test_an_index_beyond_the_split_names_its_size(tmp_path: Path) -> None:
    task = build_task(write(tmp_path, questions(300)), {})
    with pytest.raises(UsageError, match=f"only {task.info.sizes['test']} questions"):
        task.item("test", 5000)


GOOD = [json.dumps(row) for row in questions(40)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{not json", ["line 37", "not JSON", "one JSON object per line"]),
        ("[1, 2]", ["line 37", "a JSON list, not an object"]),
        ('"text"', ["line 37", "a JSON str, not an object"]),
        ('{"question": "q"}', ["line 37: field answer", "missing", "has the fields question"]),
        ('{"question": "q", "answr": 3}', ["line 37: field answer", "did you mean answr"]),
        ("{}", ["line 37: field question", "has the fields none"]),
        ('{"question": "q", "answer": ""}', ["line 37: field answer", "empty"]),
        ('{"question": "q", "answer": null}', ["line 37: field answer", "empty (null)"]),
        ('{"question": "q", "answer": [3]}', ["line 37: field answer", "a list"]),
        ('{"question": "q", "answer": true}', ["line 37: field answer", "a bool"]),
        ('{"question": "q", "answer": NaN}', ["line 37: field answer", "nan"]),
        ('{"question": "  ", "answer": 3}', ["line 37: field question", "empty"]),
        ('{"question": "What is 1 + 1?", "answer": 3}', ["lines 2 and 37", "two answers"]),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: list[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*GOOD[:36], line, *GOOD[37:]]))
    with pytest.raises(UsageError) as error:
        build_task(str(path), {})
    assert all(part in str(error.value) for part in [*expected, str(path)]), str(error.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes("\n".join(GOOD[:4]).encode() + b'\n{"question": "caf\xe9", "answer": 1}\n')
    with pytest.raises(UsageError, match=r"line 5\n.*not UTF-8 \(byte 18 of the line is 0xe9\)"):
        build_task(str(path), {})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"prompt": "{Question}"}, ["unknown placeholder {Question}", "fields id, question, answer", "question"]),
        ({"prompt": "{question"}, ["not a format string"]),
        ({"prompt": "{} {question}"}, ["a placeholder without a name"]),
        ({"prompt": "Answer!"}, ["it names no field"]),
        ({"answer_field": "gold"}, ["line 1: field gold", "missing"]),
        ({"answer_split": "####"}, ["line 1: field answer", "'####'"]),
        ({"match": "fuzzy"}, ["match='fuzzy'", "numeric, exact"]),
        ({"extract": "first"}, ["extract='first'", "last_number"]),
        ({"extract": "regex:("}, ["not a regex"]),
        ({"answers": "x"}, ["answers='x'", "answer_field"]),
        ({"prompt": 3}, ["prompt=3", "not a text"]),
    ],
)
def test_a_bad_parameter_is_named(tmp_path: Path, params: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build_task(write(tmp_path, questions(40)), params)
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_files_that_cannot_be_a_task(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder.jsonl").mkdir()
    for name, expected in (("empty", "no lines"), ("folder", "a folder"), ("emty", "empty.jsonl")):
        with pytest.raises(UsageError, match=expected):
            build_task(str(tmp_path / f"{name}.jsonl"), {})
    with pytest.raises(UsageError, match="too few rows"):
        build_task(write(tmp_path, questions(2)), {})
    with pytest.raises(UsageError, match="match=numeric, but this is no number"):
        build_task(write(tmp_path, [*questions(5), {"question": "x", "answer": "y"}]), {"match": "numeric"})
    twins = [{"id": "a", "question": f"q{i}", "answer": i} for i in range(5)]
    with pytest.raises(UsageError, match=r"lines 1 and 2: id='a'"):
        build_task(write(tmp_path, twins), {"id_field": "id"})
