"""Programming problems in the shapes in which they are published, read into one: a statement and tests."""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from harness.core.errors import UsageError
from tasks.sources import Source

SHAPES = (
    "input_output (APPS, TACO), tests or official_tests (Codeforces), public_test_cases (LiveCodeBench), "
    "test and entry_point (HumanEval), test_list (MBPP)"
)
STATEMENTS = ("question", "problem", "question_content", "description", "prompt", "text")
_ASK_PROGRAM = (
    "\n\nWrite a Python program that reads standard input and writes the answer to standard output, "
    "in one ```python block."
)
_ASK_FUNCTION = "\n\nAnswer with the complete Python function in one ```python block."


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One test: text in and out of a program, arguments and value of a function, or assertions about it."""

    kind: Literal["stdin", "call", "asserts"]
    given: Any = ""  # stdin: text; call: list of arguments
    expected: Any = ""  # stdin: text; call: value
    function: str | None = None  # call
    code: str = ""  # asserts: run after the solution, raises where it fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A statement with its tests, and a solution where one is published."""

    statement: str
    tests: tuple[Test, ...]
    solution: str | None = None
    date: str | None = None  # YYYY-MM-DD, of the contest
    rating: int | None = None  # difficulty on the Elo scale


def problem_of(source: Source, line: int, record: Mapping[str, Any], most: int) -> Problem:
    """One row; UsageError naming row and field where it is of no known shape. At most `most` tests are kept."""
    where = source.at(line)
    tests = _tests(where, record)
    if not tests:
        raise UsageError(where, f"no tests; the {source.unit} has the fields {', '.join(record) or 'none'}", SHAPES)
    name = next((n for n in STATEMENTS if isinstance(record.get(n), str) and record[n].strip()), None)
    if name is None:
        raise UsageError(where, "no statement", f"a text in one of {', '.join(STATEMENTS)}")
    ask = _ASK_PROGRAM if tests[0].kind == "stdin" else _ASK_FUNCTION
    starter = record.get("starter_code")
    code = f"\n\n```python\n{starter}\n```" if isinstance(starter, str) and starter.strip() else ""
    if "test_list" in record:
        code = "\n\nIt must pass:\n" + "\n".join(_assertions(where, record)[:3])
    return Problem(
        statement=record[name].strip() + code + ask,
        tests=tests[:most],
        solution=_solution(record),
        date=_date(where, record),
        rating=_rating(where, record),
    )


def _date(where: str, record: Mapping[str, Any]) -> str | None:
    """The day of the contest; LiveCodeBench writes `2024-08-03T00:00:00`."""
    field = next((f for f in ("contest_date", "date") if record.get(f) is not None), None)
    if field is None:
        return None
    try:
        return date.fromisoformat(str(record[field])[:10]).isoformat()
    except ValueError:
        raise UsageError(f"{where}: field {field}", f"{record[field]!r} is no date", "YYYY-MM-DD") from None


def _rating(where: str, record: Mapping[str, Any]) -> int | None:
    value = record.get("rating")
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where}: field rating", f"a {type(value).__name__}, {value!r}", "a number, or no rating")
    return int(value)


def _solution(record: Mapping[str, Any]) -> str | None:
    if isinstance(record.get("canonical_solution"), str) and isinstance(record.get("prompt"), str):
        return str(record["prompt"] + record["canonical_solution"])
    found = record.get("solution", record.get("code"))
    return found if isinstance(found, str) and found.strip() else None


def _tests(where: str, record: Mapping[str, Any]) -> tuple[Test, ...]:
    if "test" in record and "entry_point" in record:
        call = f"{record['test']}\ncheck({record['entry_point']})\n"
        return (Test(kind="asserts", code=call, function=str(record["entry_point"])),)
    if "test_list" in record:
        lines = _assertions(where, record)
        setup = str(record.get("test_setup_code") or "")
        return tuple(Test(kind="asserts", code=f"{setup}\n{line}\n") for line in lines)
    if "input_output" in record:
        return _inputs_outputs(where, record["input_output"])
    function = _function(record)
    found: list[Test] = []
    for field in ("tests", "official_tests", "public_test_cases", "private_test_cases"):
        cases = record.get(field) or []
        if field == "private_test_cases" and isinstance(cases, str) and not cases.lstrip().startswith("["):
            cases = _unpacked(where, field, cases)
        for case in _list(where, field, cases):
            if not isinstance(case, Mapping) or "input" not in case or "output" not in case:
                raise UsageError(
                    f"{where}: field {field}", "a test without input and output", '{"input": .., "output": ..}'
                )
            found.append(_case(where, field, case, function))
    return tuple(found)


def _assertions(where: str, record: Mapping[str, Any]) -> Sequence[str]:
    lines = _list(where, "test_list", record["test_list"])
    odd = next((line for line in lines if not isinstance(line, str)), None)
    if odd is not None:
        raise UsageError(f"{where}: field test_list", f"a {type(odd).__name__}, {odd!r}", "assertions as texts")
    return lines


def _case(where: str, field: str, case: Mapping[str, Any], function: str | None) -> Test:
    if case.get("testtype") != "functional":
        return Test(kind="stdin", given=str(case["input"]), expected=str(case["output"]))
    if function is None:
        raise UsageError(f"{where}: field {field}", "a functional test without a function", "metadata with func_name")
    lines = str(case["input"]).strip().splitlines()
    given = [_json(where, field, line) for line in lines]
    return Test(kind="call", given=given, expected=_json(where, field, case["output"]), function=function)


def _unpacked(where: str, field: str, text: str) -> str:
    """LiveCodeBench's hidden tests: JSON text, pickled, compressed, in base64. Read without running the pickle."""
    try:
        content = zlib.decompress(base64.b64decode(text, validate=True))
        found = [value for _, value, _ in pickletools.genops(content) if isinstance(value, str)]
    except (ValueError, zlib.error) as error:
        raise UsageError(
            f"{where}: field {field}", f"neither JSON nor packed as LiveCodeBench does: {error}", "a list of tests"
        ) from None
    if len(found) != 1:
        raise UsageError(f"{where}: field {field}", f"{len(found)} texts are packed in it, not one", "a list of tests")
    return str(found[0])


def _function(record: Mapping[str, Any]) -> str | None:
    metadata = record.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except json.JSONDecodeError:
            return None
    return metadata.get("func_name") if isinstance(metadata, Mapping) else None


def _inputs_outputs(where: str, data: Any) -> tuple[Test, ...]:
    """APPS: {"inputs": [..], "outputs": [..], "fn_name": ..}, as an object or as JSON text."""
    field = f"{where}: field input_output"
    data = _json(where, "input_output", data) if isinstance(data, str) else data
    if not isinstance(data, Mapping) or not {"inputs", "outputs"} <= data.keys():
        raise UsageError(field, "no inputs and outputs", '{"inputs": [..], "outputs": [..]}')
    inputs, outputs = (_list(where, f"input_output.{key}", data[key]) for key in ("inputs", "outputs"))
    if len(inputs) != len(outputs):
        raise UsageError(field, f"{len(inputs)} inputs and {len(outputs)} outputs", "as many of each")
    name = data.get("fn_name")
    if name is None:
        return tuple(
            Test(kind="stdin", given=_text(i), expected=_text(o)) for i, o in zip(inputs, outputs, strict=True)
        )
    odd = next((i for i in inputs if not isinstance(i, (list, tuple))), None)
    if odd is not None:
        raise UsageError(field, f"inputs of {name} are a {type(odd).__name__}, {odd!r}", "a list of arguments per test")
    return tuple(
        Test(kind="call", given=list(i), expected=o, function=str(name)) for i, o in zip(inputs, outputs, strict=True)
    )


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _list(where: str, field: str, value: Any) -> Sequence[Any]:
    value = _json(where, field, value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{where}: field {field}", f"a {type(value).__name__}, not a list", "a list of tests")
    return value


def _json(where: str, field: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: field {field}", f"not JSON: {error}", "JSON text, or plain data") from None
