"""Data tasks: `<file>.jsonl`, `<file>.parquet`, `hf:<dataset id>`, and data sets known by name."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.types import FinishReason, Grade, Prompt
from tasks.division import divided
from tasks.graders import as_number, boxed, exactly_equal, last_number, numerically_equal, tagged
from tasks.params import check_choice, check_known
from tasks.presets import PRESETS, preset_of_dataset
from tasks.rows import Row, check_placeholder, distinct, placeholders, row_of
from tasks.sources import Source, from_file, from_hub
from tasks.workers import Called, Workers

_FILE_PARAMS = ("preset", "test_file")
_HUB_PARAMS = ("preset", "config", "split", "test_split", "revision")
_READING = ("prompt", "answer_field", "match", "extract", "answer_split", "answer_part", "id_field")
PARAMS = (*_FILE_PARAMS, *_READING)
EXTRACTS = ("last_number", "all", "tags", "regex:<pattern>")
MATCHES = ("numeric", "exact", "math")
_LIMIT_S = 5.0  # of one grading by math-verify; a readable answer takes milliseconds
_MEMORY_MIB = 4096  # of a worker: `10^{10^{10}}` is four characters of a response
_LONGEST = 20_000  # characters sent to be graded, from the end


class JsonlTask(SingleTurnTask):
    """Items in the order of their content hash, so neither the file's order nor its name matters.

    Splits by content hash (80/10/10 %); where that leaves one empty, the first tenth in hash order is test, the next
    validation, at least one each. With test rows of their own, these are the test split and the others are divided
    (90/10 %) into train and validation. Rows with the same prompt and the same answer count once.
    A response that was cut off is graded as it stands.

    `match="math"` compares by math-verify in worker processes. `why` then tells right, wrong, no answer and unparsable
    answer apart; an unparsable gold and a grading beyond its time limit are `failed`.
    """

    def __init__(
        self,
        items: Mapping[Split, list[Prompt]],
        info: TaskInfo,
        match: str,
        extract: str,
        read: Callable[[str], str | None],
    ) -> None:
        self.info, self.match, self.extract = info, match, extract
        self._items, self._read = items, read
        self._equal = numerically_equal if match == "numeric" else exactly_equal
        file = Path(__file__).parent / "graders" / "mathematics.py"
        self._workers = Workers(file, "verdict", limit_s=_LIMIT_S, memory_mib=_MEMORY_MIB) if match == "math" else None

    def item(self, split: Split, index: int) -> Prompt:
        items = self._items[split]
        if not 0 <= index < len(items):
            raise UsageError(
                f"task {self.info.name}: item {index} of split {split}",
                f"the file has only {len(items)} questions there",
                f"at most {len(items)} prompts, or a larger file",
            )
        return items[index]

    def gold(self, prompt: Prompt) -> str | None:
        """A response that is graded correct; None where answers are read by a regex."""
        if self.match == "math":
            return f"\\boxed{{{prompt.answer}}}"
        return None if self.extract.startswith("regex:") else self._written(str(prompt.answer))

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The answer as it stands in the file is right; another one and nothing are wrong."""
        gold, number = self.gold(prompt), as_number(prompt.answer)
        if gold is None or self.match == "math":  # stored answers are compared with one another by the verifier's check
            return [("", False)]
        other = str(number + 1) if self.match == "numeric" and number is not None else f"not {prompt.answer}"
        return [(gold, True), (self._written(other), False), ("", False)]

    def _written(self, answer: str) -> str:
        return f"<answer>{answer}</answer>" if self.extract == "tags" else answer

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        if self._workers is not None:
            return self.grade_many([Response(prompt=prompt, text=text, finish_reason=finish_reason)])[0]
        extracted = self._read(text) or None
        if extracted is None:
            return Grade(score=0.0, correct=False, why="no answer")
        correct = self._equal(extracted, prompt.answer)
        return Grade(score=float(correct), correct=correct, extracted=extracted, why="right" if correct else "wrong")

    def grade_many(self, responses: Sequence[Response]) -> list[Grade]:
        if self._workers is None:
            return super().grade_many(responses)
        return [_verdict(c) for c in self._workers.map([(r.prompt.answer, _answer_part(r.text)) for r in responses])]


def _answer_part(text: str) -> str:
    """All that decides the verdict: the last boxed expression, else the end of the response."""
    found = boxed(text)
    return f"\\boxed{{{found}}}" if found else text[-_LONGEST:]


def _verdict(called: Called) -> Grade:
    """The grade of one call of math-verify. No verdict about an answer that nobody could read is no success."""
    if called.failure is not None:
        return Grade(score=0.0, correct=False, why=f"not graded: {called.why}", failed=True)
    outcome, extracted = called.value["outcome"], called.value["extracted"]
    if outcome == "unparsable gold":  # says nothing about the response, so the row abstains
        return Grade(score=float("nan"), correct=False, why=outcome, failed=True)
    correct = outcome == "right"
    return Grade(score=float(correct), correct=correct, extracted=extracted, why=outcome)


def build(argument: str = "", **params: Any) -> JsonlTask:
    """`<file>.jsonl` or `<file>.parquet` with
    prompt: format string over the fields, default `{question}`; a.0.b reaches into objects and lists;
    answer_field: default `answer`; answer_split: keep what follows its last occurrence in the answer (GSM8K: `####`);
    answer_part: boxed, keep what the answer's last `\\boxed{}` holds;
    match: numeric (default where all answers are numbers), exact, or math (math-verify reads and compares);
    extract: last_number (default for numeric), all (default for exact), tags, or regex:<pattern> (last match, first
    group); id_field: optional, unique; preset: the parameters of a known data set; test_file: rows of the test split.
    """
    check_known("jsonl", params, PARAMS)
    _check_texts(argument, params)
    merged = {**_preset(params.get("preset")), **params}
    source = from_file(argument)
    test = from_file(merged["test_file"]) if "test_file" in merged else None
    return task_of(Path(argument).name, source, test, merged)


def build_hub(argument: str = "", **params: Any) -> JsonlTask:
    """`hf:<dataset id>` with config, split (default train), test_split, revision, and what a file takes."""
    if not argument:
        raise UsageError("task hf:", "no dataset is named", "e.g. hf:openai/gsm8k")
    check_known("hf", params, (*_HUB_PARAMS, *_READING))
    _check_texts(f"hf:{argument}", params)
    name = params.get("preset") or preset_of_dataset(argument)
    merged = {**_preset(name), **params}
    known = PRESETS[name] if name and PRESETS[name].dataset == argument else None
    load = partial(
        from_hub,
        argument,
        config=params.get("config") or (known.config if known else None),
        revision=params.get("revision"),
    )
    held_out = params.get("test_split") or (known.test_split if known and "split" not in params else None)
    source = load(split=params.get("split") or (known.split if known else "train"))
    return task_of(f"hf:{argument}", source, load(split=held_out) if held_out else None, merged)


def build_preset(name: str, argument: str = "", **params: Any) -> JsonlTask:
    """A data set by its name, from the hub."""
    if argument:
        raise UsageError(f"task {name}:{argument}", "it takes no argument", f"--task {argument} -t preset={name}")
    return build_hub(PRESETS[name].dataset, preset=name, **params)


def task_of(name: str, source: Source, test: Source | None, params: Mapping[str, str]) -> JsonlTask:
    """The task made of rows, with test rows of their own or without."""
    rows, held_out = _rows(source, params), _rows(test, params) if test else []
    match = _match(source, rows, params)
    if test is not None:
        _match(test, held_out, {**params, "match": match})
    if match == "math":
        _check_math(source, params)
    extract = (
        "math-verify" if match == "math" else params.get("extract") or ("last_number" if match == "numeric" else "all")
    )
    items = divided(source, rows, test, held_out)
    sha256 = source.sha256 if test is None else hashlib.sha256((source.sha256 + test.sha256).encode()).hexdigest()
    info = TaskInfo(
        name=name,
        reward_range=(0.0, 1.0),
        threshold=1.0,
        sizes={split: len(found) for split, found in items.items()},
        description=f"{len(rows) + len(held_out)} questions, data sha256 {sha256[:16]}, answers read by {extract}, "
        f"match {match}",
        data_sha256=sha256,
    )
    return JsonlTask(items, info, match, extract, str.strip if match == "math" else _reader(source, extract))


def _preset(name: str | None) -> Mapping[str, str]:
    if name is None:
        return {}
    check_choice("preset", "preset", name, PRESETS)
    return PRESETS[name].params


def _check_texts(given: str, params: Mapping[str, Any]) -> None:
    for name, value in params.items():
        if not isinstance(value, str) or not value:
            raise UsageError(f"task {given}: {name}={value!r}", "not a text", f"a text for {name}")
    if "answer_part" in params:
        check_choice(given, "answer_part", params["answer_part"], ("boxed",))


def _check_math(source: Source, params: Mapping[str, str]) -> None:
    if "extract" in params:
        raise UsageError(
            f"task file {source}: extract={params['extract']!r}",
            "match=math reads boxed expressions, final answers and numbers by itself",
            "no extract, or match=numeric or exact",
        )
    if importlib.util.find_spec("math_verify") is None:
        raise UsageError(
            f"task file {source}: match=math",
            "the package math-verify is not installed",
            "pip install '.[eval]', or match=numeric where answers are numbers",
        )


def _rows(source: Source, params: Mapping[str, str]) -> list[Row]:
    template = params.get("prompt", "{question}")
    wanted = placeholders(source, template)
    rows: list[Row] = []
    for line, record in source.records():
        if not rows:
            for field in wanted:
                check_placeholder(source, line, template, field, record)
        rows.append(row_of(source, line, record, template, wanted, params))
    if not rows:
        raise UsageError(f"task file {source}", f"it has no {source.unit}s", "one JSON object per line")
    return distinct(source, rows, params.get("id_field"))


def _match(source: Source, rows: list[Row], params: Mapping[str, str]) -> str:
    """numeric, exact or math, as asked for or as the answers suggest."""
    if "answer_split" not in params and "match" not in params and all("####" in row.answer for row in rows):
        raise UsageError(
            f"task file {source}: field {params.get('answer_field', 'answer')}",
            "every answer is a worked solution that ends in `#### ...`; no response would match it word for word",
            "answer_split='####', which keeps what follows, or preset=gsm8k",
        )
    match = params.get("match") or ("numeric" if all(as_number(row.answer) is not None for row in rows) else "exact")
    check_choice(str(source), "match", match, MATCHES)
    if match == "numeric":
        for row in rows:
            if as_number(row.answer) is None:
                raise UsageError(
                    f"{source.at(row.line)}: answer {row.answer[:60]!r}",
                    "match=numeric, but this is no number",
                    "match=exact or match=math, or answer_split to keep only the number",
                )
    return match


def _reader(source: Source, extract: str) -> Callable[[str], str | None]:
    if extract.startswith("regex:"):
        try:
            pattern = re.compile(extract.removeprefix("regex:"))
        except re.error as error:
            raise UsageError(
                f"task file {source}: extract={extract!r}", f"not a regex: {error}", "a valid pattern"
            ) from None

        def by_regex(text: str) -> str | None:
            found = list(pattern.finditer(text))
            return str(found[-1][1 if pattern.groups else 0] or "").strip() if found else None

        return by_regex
    check_choice(str(source), "extract", extract, EXTRACTS)
    readers: dict[str, Callable[[str], str | None]] = {"last_number": last_number, "tags": tagged, "all": str.strip}
    return readers[extract]


register_task("jsonl", build)
register_task("hf", build_hub)
for _name in PRESETS:
    register_task(_name, partial(build_preset, _name))
