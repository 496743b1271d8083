"""`<file>.jsonl`: a task from a file with one JSON object per line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.types import FinishReason, Grade, Message, Prompt
from tasks.graders import as_number, exactly_equal, last_number, numerically_equal, tagged
from tasks.params import check_choice, check_known
from tasks.rows import Row, bytes_of, check_placeholder, distinct, placeholders, records, row_of
from tasks.splits import digest, split_of_digest

PARAMS = ("prompt", "answer_field", "match", "extract", "answer_split", "id_field")
EXTRACTS = ("last_number", "all", "tags", "regex:<pattern>")
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class JsonlTask(SingleTurnTask):
    """Items in the order of their content hash, so neither the file's order nor its name matters.

    Splits by content hash (80/10/10 %); where that leaves one empty, the first tenth in hash order is test, the next
    validation, at least one each. Lines with the same prompt and the same answer count once.
    A response that was cut off is graded as it stands.
    """

    def __init__(
        self, path: Path, rows: list[Row], sha256: str, match: str, extract: str, read: Callable[[str], str | None]
    ) -> None:
        self.match, self.extract = match, extract
        self._read = read
        self._equal = numerically_equal if match == "numeric" else exactly_equal
        self._items = _split(path, rows)
        self.info = TaskInfo(
            name=path.name,
            reward_range=(0.0, 1.0),
            threshold=1.0,
            sizes={split: len(items) for split, items in self._items.items()},
            description=f"{len(rows)} questions, file sha256 {sha256[:16]}, answers read by {extract}, match {match}",
            data_sha256=sha256,
        )

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
        if self.extract.startswith("regex:"):
            return None
        return f"<answer>{prompt.answer}</answer>" if self.extract == "tags" else str(prompt.answer)

    def self_test_cases(self, prompt: Prompt) -> Sequence[tuple[str, bool]]:
        """The answer as it stands in the file is right; another one and nothing are wrong."""
        gold, number = self.gold(prompt), as_number(prompt.answer)
        if gold is None:
            return [("", False)]
        other = str(number + 1) if self.match == "numeric" and number is not None else f"not {prompt.answer}"
        wrong = f"<answer>{other}</answer>" if self.extract == "tags" else other
        return [(gold, True), (wrong, False), ("", False)]

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        extracted = self._read(text) or None
        if extracted is None:
            return Grade(score=0.0, correct=False, why="no answer")
        correct = self._equal(extracted, prompt.answer)
        return Grade(score=float(correct), correct=correct, extracted=extracted, why="right" if correct else "wrong")


def build(argument: str = "", **params: Any) -> JsonlTask:
    """`<file>.jsonl` with
    prompt: format string over the fields, default `{question}`;
    answer_field: default `answer`; answer_split: keep what follows its last occurrence in the answer (GSM8K: `####`);
    match: numeric (default where all answers are numbers) or exact;
    extract: last_number (default for numeric), all (default for exact), tags, or regex:<pattern> (last match, first
    group); id_field: optional, unique.
    """
    check_known("jsonl", params, PARAMS)
    for name, value in params.items():
        if not isinstance(value, str) or not value:
            raise UsageError(f"task {argument}: {name}={value!r}", "not a text", f"a text for {name}")
    path = Path(argument).expanduser()
    content = bytes_of(path, argument)
    template = params.get("prompt", "{question}")
    wanted = placeholders(path, template)
    rows: list[Row] = []
    for line, record in records(path, content):
        if not rows:
            for field in wanted:
                check_placeholder(path, line, template, field, record)
        rows.append(row_of(path, line, record, template, wanted, params))
    if not rows:
        raise UsageError(f"task file {path}", "it has no lines", "one JSON object per line")
    rows = distinct(path, rows, params.get("id_field"))
    match = _match(path, rows, params)
    extract = params.get("extract") or ("last_number" if match == "numeric" else "all")
    sha256 = hashlib.sha256(content).hexdigest()
    return JsonlTask(path, rows, sha256, match, extract, _reader(path, extract))


def _match(path: Path, rows: list[Row], params: dict[str, str]) -> str:
    """numeric or exact, as asked for or as the answers suggest."""
    if "answer_split" not in params and "match" not in params and all("####" in row.answer for row in rows):
        raise UsageError(
            f"task file {path}: field {params.get('answer_field', 'answer')}",
            "every answer is a worked solution that ends in `#### ...`; no response would match it word for word",
            "answer_split='####', which keeps what follows",
        )
    match = params.get("match") or ("numeric" if all(as_number(row.answer) is not None for row in rows) else "exact")
    check_choice(str(path), "match", match, ("numeric", "exact"))
    if match == "numeric":
        for row in rows:
            if as_number(row.answer) is None:
                raise UsageError(
                    f"{path}, line {row.line}: answer {row.answer[:60]!r}",
                    "match=numeric, but this is no number",
                    "match=exact, or answer_split to keep only the number",
                )
    return match


def _split(path: Path, rows: list[Row]) -> dict[Split, list[Prompt]]:
    if len(rows) < len(_SPLITS):
        raise UsageError(
            f"task file {path}: {len(rows)} different questions",
            "too few rows for three disjoint splits (train, validation, test)",
            "at least 3 questions; 100 or more for scores worth reading",
        )
    ordered = sorted(((digest(row.content), row) for row in rows), key=lambda pair: pair[0])
    items: dict[Split, list[Prompt]] = {split: [] for split in _SPLITS}
    for key, row in ordered:
        items[split_of_digest(key)].append(_prompt(row))
    if not all(items.values()):
        prompts, tenth = [_prompt(row) for _, row in ordered], max(1, len(ordered) // 10)
        items = {"test": prompts[:tenth], "validation": prompts[tenth : 2 * tenth], "train": prompts[2 * tenth :]}
    return items


def _prompt(row: Row) -> Prompt:
    message: Message = {"role": "user", "content": row.content}
    return Prompt(id=row.id, messages=(message,), answer=row.answer)


def _reader(path: Path, extract: str) -> Callable[[str], str | None]:
    if extract.startswith("regex:"):
        source = extract.removeprefix("regex:")
        try:
            pattern = re.compile(source)
        except re.error as error:
            raise UsageError(
                f"task file {path}: extract={extract!r}", f"not a regex: {error}", "a valid pattern"
            ) from None

        def by_regex(text: str) -> str | None:
            found = list(pattern.finditer(text))
            return str(found[-1][1 if pattern.groups else 0] or "").strip() if found else None

        return by_regex
    check_choice(str(path), "extract", extract, EXTRACTS)
    readers: dict[str, Callable[[str], str | None]] = {"last_number": last_number, "tags": tagged, "all": str.strip}
    return readers[extract]


register_task("jsonl", build)
