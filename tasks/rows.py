"""The rows of a data task, checked: every complaint names source, row and field."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UsageError, near
from tasks.graders.extract import boxed
from tasks.sources import Source
from tasks.splits import content_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row after its checks."""

    line: int
    id: str
    content: str  # the prompt text
    answer: str
    difficulty: str | None = None  # a tag for breakdowns


def placeholders(source: Source, template: str) -> list[str]:
    """The fields that a prompt's format string names."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        if not all(fields):
            raise ValueError("a placeholder without a name")
    except ValueError as error:
        raise UsageError(
            f"task file {source}: prompt={template!r}",
            f"not a format string: {error}",
            "e.g. '{question}'; {{ for a brace",
        ) from None
    if not fields:
        raise UsageError(f"task file {source}: prompt={template!r}", "it names no field", "e.g. '{question}'")
    return fields


def check_placeholder(source: Source, line: int, template: str, field: str, record: Mapping[str, Any]) -> None:
    """Refuses a placeholder that names no field of the first row."""
    if _lookup(record, field) is MISSING:
        raise UsageError(
            f"task file {source}: prompt={template!r}",
            f"unknown placeholder {{{field}}}: {source.unit} {line} has the fields {', '.join(record) or 'none'}",
            near(field, record) if record else "rows with fields",
        )


def row_of(
    source: Source, line: int, record: Mapping[str, Any], template: str, wanted: list[str], params: Mapping[str, str]
) -> Row:
    """One line, its fields checked and its prompt filled in."""
    values = {field: _text(source, line, record, field) for field in wanted}
    content = "".join(
        literal + (values[field] if field else "") for literal, field, _, _ in string.Formatter().parse(template)
    ).strip()
    answer_field = params.get("answer_field", "answer")
    answer, mark = _text(source, line, record, answer_field), params.get("answer_split")
    if mark:
        if mark not in answer:
            raise UsageError(
                f"{source.at(line)}: field {answer_field}", f"it does not hold {mark!r}", "another answer_split"
            )
        answer = answer.rpartition(mark)[2].strip()
        if not answer:
            raise UsageError(f"{source.at(line)}: field {answer_field}", f"nothing follows {mark!r}", "an answer")
    if params.get("answer_part") == "boxed":
        part = boxed(answer)
        if not part:
            raise UsageError(
                f"{source.at(line)}: field {answer_field}", "it holds no \\boxed{...}", "another answer_part, or none"
            )
        answer = part
    id_field = params.get("id_field")
    name = _text(source, line, record, id_field) if id_field else content_id(content)
    return Row(line=line, id=name, content=content, answer=answer)


MISSING = object()


def _lookup(record: Mapping[str, Any], field: str) -> Any:
    """A field by name, or by a dotted path through objects and lists: `reward_model.ground_truth`, `prompt.0.content`.

    MISSING where there is none.
    """
    if field in record:
        return record[field]
    value: Any = record
    for step in field.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return MISSING
    return value


def _text(source: Source, line: int, record: Mapping[str, Any], field: str) -> str:
    """A field's value as text; whole floats without their `.0`."""
    where = f"{source.at(line)}: field {field}"
    value = _lookup(record, field)
    if value is MISSING:
        raise UsageError(
            where,
            f"missing; the {source.unit} has the fields {', '.join(record) or 'none'}",
            near(field, record) if record else "a row that has it",
        )
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


def distinct(source: Source, rows: list[Row], id_field: str | None) -> list[Row]:
    """The rows with different prompts, each once; equal ids and contradicting answers are refused."""
    ids: dict[str, int] = {}
    contents: dict[str, Row] = {}
    for row in rows:
        if id_field and row.id in ids:
            raise UsageError(
                f"{source.both(ids[row.id], row.line)}: {id_field}={row.id!r}",
                "two rows have the same id",
                "unique ids, or no id_field (ids then come from the content)",
            )
        ids[row.id] = row.line
        first = contents.setdefault(row.content, row)
        if first.answer != row.answer:
            raise UsageError(
                source.both(first.line, row.line),
                f"the same prompt has two answers, {first.answer[:40]!r} and {row.answer[:40]!r}",
                "one of them, or a prompt that shows the fields in which they differ",
            )
    return list(contents.values())
