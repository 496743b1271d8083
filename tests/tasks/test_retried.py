"""Several attempts at a single-turn task, with and without feedback as text in the next prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Response, SingleTurnTask, Task, Turn
from harness.core.registry import build_task
from harness.core.types import Done, Grade, Observation


def turn(task: Task, state: Any, text: str) -> tuple[Any, Observation | Done]:
    return task.step(state, text, "stop")


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        (True, "That is not correct: wrong. I read the answer {other}. Try again."),
        (False, "That is not correct. Try again."),
    ],
)
def test_a_wrong_answer_is_asked_for_again(feedback: bool, said: str) -> None:
    task = build_task("chain", {"attempts": 2, "attempt_feedback": feedback})
    item = task.item("train", 0)
    other = (int(item.answer) + 1) % 10
    state, reply = turn(task, task.start(item), f"# {other}")
    assert isinstance(reply, Observation)
    assert reply.messages[0]["content"] == said.format(other=other)
    _, reply = turn(task, state, task.gold(item) or "")
    assert isinstance(reply, Done)
    assert reply.grade.correct
    _, reply = turn(task, state, "nothing")
    assert isinstance(reply, Done), "the last attempt counts, right or wrong"
    assert reply.grade.why == "no answer"
    assert task.info.max_turns == 2


def test_a_right_first_answer_ends_the_episode_and_credit_names_its_turn() -> None:
    task = build_task("chain", {"attempts": 3})
    item = task.item("train", 0)
    _, reply = turn(task, task.start(item), task.gold(item) or "")
    assert isinstance(reply, Done)
    state, _ = turn(task, task.start(item), "+1 2 # 99")
    state, _ = turn(task, state, "+1 2 # 99")
    _, reply = turn(task, state, "+1 2 # 99")
    assert isinstance(reply, Done)
    assert {c.turn for c in reply.grade.credit} == {2}


def test_a_failed_grading_is_no_wrong_answer_and_all_answers_are_graded_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(prompt, response, answer):\n    assert response != 'bad'\n    return float('right' in response)\n"
    )
    task = build_task("chain", {"attempts": 2, "reward_function": f"{tmp_path / 'mine.py'}:score"})
    item = task.item("train", 0)
    calls: list[int] = []
    base: SingleTurnTask = task._base  # type: ignore[attr-defined]
    grade_many = base.grade_many

    def counted(responses: list[Response]) -> list[Grade]:
        calls.append(len(responses))
        return grade_many(responses)

    base.grade_many = counted  # type: ignore[method-assign, assignment]
    turns = [Turn(state=task.start(item), text=text, finish_reason="stop") for text in ("bad", "right", "wrong")]
    replies = [reply for _, reply in task.step_many(turns)]
    assert calls == [3]
    assert [type(r) for r in replies] == [Done, Done, Observation]
    assert isinstance(replies[0], Done)
    assert replies[0].grade.failed


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [("guess", {"attempts": 2}, "several turns already"), ("chain", {"attempts": 1}, "from 2 to 32"),
     ("chain", {"attempts": 2, "attempt_feedback": "yes"}, "true or false")],
)  # fmt: skip
def test_what_cannot_be_tried_again(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_task(name, params)
