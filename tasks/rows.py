"""The lines of a `.jsonl` task file, read and checked: every complaint names file, line and field."""

from __future__ import annotations

import difflib
import json
import math
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError, near
from tasks.splits import content_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the file after its checks."""

    line: int
    id: str
    content: str  # the prompt text
    answer: str


def bytes_of(path: Path, given: str) -> bytes:
    """The file's content."""
    if path.is_dir():
        raise UsageError(f"task file {given}", "this is a folder", "a .jsonl file in it")
    if not path.exists():
        beside = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.3) or sorted(beside)[:5]
        where = f"in {path.parent}: {', '.join(close)}" if close else "the path of an existing file"
        raise UsageError(f"task file {given}", "no such file", where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"task file {given}", f"it cannot be read: {error.strerror}", "a readable file") from None


def records(path: Path, content: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, object) of every line that is not blank."""
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{path}, line {number}"
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(
                where, f"not UTF-8 (byte {error.start + 1} of the line is 0x{raw[error.start]:02x})", "save it as UTF-8"
            ) from None
        if not text:
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"{where}: {text[:60]!r}", f"not JSON ({error})", "one JSON object per line") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UsageError(
                f"{where}: {text[:60]!r}",
                f"a JSON {kind}, not an object",
                'an object, e.g. {"question": ..., "answer": ...}',
            )
        yield number, record


def placeholders(path: Path, template: str) -> list[str]:
    """The fields that a prompt's format string names."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        if not all(fields):
            raise ValueError("a placeholder without a name")
    except ValueError as error:
        raise UsageError(
            f"task file {path}: prompt={template!r}",
            f"not a format string: {error}",
            "e.g. '{question}'; {{ for a brace",
        ) from None
    if not fields:
        raise UsageError(f"task file {path}: prompt={template!r}", "it names no field", "e.g. '{question}'")
    return fields


def check_placeholder(path: Path, line: int, template: str, field: str, record: Mapping[str, Any]) -> None:
    """Refuses a placeholder that names no field of the first row."""
    if field not in record:
        raise UsageError(
            f"task file {path}: prompt={template!r}",
            f"unknown placeholder {{{field}}}: line {line} has the fields {', '.join(record) or 'none'}",
            near(field, record) if record else "rows with fields",
        )


def row_of(
    path: Path, line: int, record: Mapping[str, Any], template: str, wanted: list[str], params: Mapping[str, str]
) -> Row:
    """One line, its fields checked and its prompt filled in."""
    values = {field: _text(path, line, record, field) for field in wanted}
    content = "".join(
        literal + (values[field] if field else "") for literal, field, _, _ in string.Formatter().parse(template)
    ).strip()
    answer_field = params.get("answer_field", "answer")
    answer, mark = _text(path, line, record, answer_field), params.get("answer_split")
    if mark:
        if mark not in answer:
            raise UsageError(
                f"{path}, line {line}: field {answer_field}", f"it does not hold {mark!r}", "another answer_split"
            )
        answer = answer.rpartition(mark)[2].strip()
        if not answer:
            raise UsageError(f"{path}, line {line}: field {answer_field}", f"nothing follows {mark!r}", "an answer")
    id_field = params.get("id_field")
    name = _text(path, line, record, id_field) if id_field else content_id(content)
    return Row(line=line, id=name, content=content, answer=answer)


def _text(path: Path, line: int, record: Mapping[str, Any], field: str) -> str:
    """A field's value as text; whole floats without their `.0`."""
    where = f"{path}, line {line}: field {field}"
    if field not in record:
        raise UsageError(
            where,
            f"missing; the line has the fields {', '.join(record) or 'none'}",
            near(field, record) if record else "a row that has it",
        )
    value = record[field]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(where, f"{value} is no answer", "a finite number or a text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        kind = "empty (null)" if value is None else f"a {type(value).__name__}"
        raise UsageError(where, f"it is {kind}", "a text or a number")
    text = str(value).strip()
    if not text:
        raise UsageError(where, "it is empty", "a text or a number")
    return text


def distinct(path: Path, rows: list[Row], id_field: str | None) -> list[Row]:
    """The rows with different prompts, each once; equal ids and contradicting answers are refused."""
    ids: dict[str, int] = {}
    contents: dict[str, Row] = {}
    for row in rows:
        if id_field and row.id in ids:
            raise UsageError(
                f"{path}, lines {ids[row.id]} and {row.line}: {id_field}={row.id!r}",
                "two rows have the same id",
                "unique ids, or no id_field (ids then come from the content)",
            )
        ids[row.id] = row.line
        first = contents.setdefault(row.content, row)
        if first.answer != row.answer:
            raise UsageError(
                f"{path}, lines {first.line} and {row.line}",
                f"the same prompt has two answers, {first.answer[:40]!r} and {row.answer[:40]!r}",
                "one of them, or a prompt that shows the fields in which they differ",
            )
    return list(contents.values())
