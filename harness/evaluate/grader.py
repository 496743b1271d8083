"""The questions of a benchmark, read and graded by the task that trains on the same kind of data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Split
from harness.core.registry import build_task
from harness.core.results import write_atomic
from harness.core.types import Grade, Prompt
from harness.evaluate.lm_eval import Benchmark

ALL_TESTS = 1000  # of a programming problem; a score counts them all
RATING = "rating="
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Grader:
    """Grades by the task itself, so a benchmark score and a training reward cannot mean different things."""

    def __init__(self, chosen: Benchmark, data: Path | None, params: Mapping[str, Any]) -> None:
        given = dict(params)
        name = str(data)
        if chosen.sandboxed:
            name = chosen.task if data is None else f"code:{data}"
            given = {"tests": ALL_TESTS, **given}
        else:
            given = {"preset": chosen.task, **given}
        task = build_task(name, given)
        assert isinstance(task, SingleTurnTask)
        self.task, self._words = task, str(chosen.config["doc_to_text"])
        items = [task.item(s, i) for s in SPLITS for i in range(task.info.sizes[s] or 0)]
        self._items = {item.messages[-1]["content"]: item for item in items}

    @property
    def sha256(self) -> str:
        """Of the data."""
        return self.task.info.data_sha256 or hashlib.sha256(repr(sorted(self._items)).encode()).hexdigest()

    @property
    def prompts(self) -> list[Prompt]:
        """Every question."""
        return list(self._items.values())

    def write_questions(self, file: Path) -> Path:
        """The questions as lm-eval's documents, for tasks whose rows are not plain text."""
        lines = (json.dumps({"id": p.id, "prompt": p.messages[-1]["content"]}) + "\n" for p in self.prompts)
        write_atomic(file, "".join(lines))
        return file

    def prompt(self, doc: Mapping[str, Any]) -> Prompt:
        """The question of an lm-eval document; both render it by the same words."""
        from jinja2 import Template

        text = Template(self._words).render(**doc).strip()
        if text not in self._items:
            raise UsageError(
                f"benchmark question {text[:60]!r}", "the task that grades it reads it differently",
                "the columns that the task file of the benchmark names",
            )  # fmt: skip
        return self._items[text]

    def grades(self, questions: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> list[list[Grade]]:
        """The grade of each response, per question."""
        flat = [
            Response(prompt=self.prompt(doc), text=text, finish_reason="stop")
            for doc, texts in questions
            for text in texts
        ]
        grades = iter(self.task.grade_many(flat))
        return [[next(grades) for _ in texts] for _, texts in questions]

    def share(self, doc: Mapping[str, Any], texts: Sequence[str]) -> float:
        """Share of right responses: lm-eval's metric."""
        [found] = self.grades([(doc, texts)])
        return sum(grade.correct for grade in found) / len(found)


def rating_of(prompt: Prompt) -> float | None:
    """The difficulty of a rated problem."""
    tag = prompt.difficulty or ""
    return float(tag.removeprefix(RATING)) if tag.startswith(RATING) else None
