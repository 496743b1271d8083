"""A study on a data file follows the file's content, not its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.assemble import planned_task
from harness.core.errors import UsageError
from harness.core.spec import BackendSpec
from harness.models.recipes import held_out, recipe
from harness.study.build import Choices, build, run_specs


def specs(path: Path) -> tuple[str, str, object]:
    task = {"name": str(path), "params": {"prompt": "{q}", "answer_field": "a"}}
    choices = Choices(preset="quick", task=task, arms=("grpo",), seeds=(0,))
    planned = build(choices, recipe, held_out, lambda spec: BackendSpec())
    run = run_specs(planned.spec)[0]
    return planned.spec.name, run.run_id, run


def write(path: Path, first: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps({"q": f"what is {i}?", "a": str(i)}) for i in range(first, first + 60)))
    return path


def test_another_folder_is_the_same_study(tmp_path: Path) -> None:
    a, b = (write(tmp_path / folder / "my.jsonl", 0) for folder in "ab")
    assert specs(a)[:2] == specs(b)[:2]


def test_other_content_is_another_study(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a" / "my.jsonl", 0), write(tmp_path / "b" / "my.jsonl", 1)
    assert specs(a)[0] != specs(b)[0]
    assert specs(a)[1] != specs(b)[1]


def test_a_changed_file_is_refused_at_run_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "my.jsonl", 0)
    run = specs(path)[2]
    write(path, 1)
    with pytest.raises(UsageError, match="changed since the study was planned"):
        planned_task(run)  # type: ignore[arg-type]
