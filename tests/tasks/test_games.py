"""The two bundled games of several turns."""

from __future__ import annotations

import random
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Split, Task
from harness.core.registry import build_task
from harness.core.types import Done, Grade, Observation, Prompt

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def answers(task: Task, prompt: Prompt, turns: list[str]) -> tuple[list[str], list[float], Grade | None]:
    """What the environment says to each turn, what the turns earn, and the grade."""
    state, said, earned = task.start(prompt), [], []
    for text in turns:
        state, reply = task.step(state, text, "stop")
        if isinstance(reply, Done):
            return said, earned, reply.grade
        assert isinstance(reply, Observation)
        said.append(reply.messages[0]["content"])
        earned.append(reply.reward)
    return said, earned, None


def hidden(task: Task, chosen: tuple[int, ...], number: int) -> Prompt:
    """The item with these candidates and this hidden number, wherever it is."""
    for split in SPLITS:
        for i in range(task.info.sizes[split] or 0):
            item = task.item(split, i)
            if item.answer == (chosen, number):
                return item
    raise AssertionError


@pytest.fixture(scope="module")
def guess() -> Task:
    return build_task("guess", {})


def test_feedback_narrows_down_and_every_sensible_guess_earns(guess: Task) -> None:
    item = hidden(guess, (0, 2, 3, 5, 7, 8), 7)
    assert item.messages[0]["content"] == "0 2 3 5 7 8 ?"
    said, earned, grade = answers(guess, item, ["# 3", "# 8", "# 7"])
    assert (said, earned) == (["+1", "-1"], [0.1, 0.1])
    assert grade is not None
    assert (grade.score, grade.correct, grade.extracted, grade.why) == (1.0, True, "7", "right")
    assert grade.components == pytest.approx({"found": 0.8, "play": 0.2})


def test_guesses_that_a_reply_excludes_earn_nothing(guess: Task) -> None:
    item = hidden(guess, (0, 2, 3, 5, 7, 8), 7)
    said, earned, grade = answers(guess, item, ["# 3", "# 2", "# 4"])
    assert (said, earned) == (["+1", "+1"], [0.1, 0.0])
    assert grade is not None
    assert (grade.score, grade.correct, grade.why) == (0.1, False, "wrong")
    _, earned, grade = answers(guess, item, ["7", "", "# 3"])
    assert (earned, grade.score if grade else None) == ([0.0, 0.0], 0.1)
    state, reply = guess.step(guess.start(item), "# 7", "length")
    assert isinstance(reply, Observation), "a turn that was cut off is no guess"
    assert state.turn == 1


def test_without_feedback_a_reply_only_says_wrong() -> None:
    task = build_task("guess", {"feedback": False})
    item = hidden(task, (0, 2, 3, 5, 7, 8), 7)
    said, earned, _ = answers(task, item, ["# 3", "# 2"])
    assert (said, earned) == (["!", "!"], [0.1, 0.1])
    _, earned, _ = answers(task, item, ["# 3", "# 3"])
    assert earned == [0.1, 0.0]


def test_the_splits_share_no_set_of_candidates(guess: Task) -> None:
    shown = [{guess.item(s, i).messages[0]["content"] for i in range(guess.info.sizes[s] or 0)} for s in SPLITS]
    assert sum(len(s) for s in shown) == 582 == len(set.union(*shown))
    assert len({guess.item("test", i).id for i in range(guess.info.sizes["test"] or 0)}) == guess.info.sizes["test"]
    assert min(len(s) for s in shown) > 30


def test_a_perfect_player_always_wins(guess: Task) -> None:
    for i in range(guess.info.sizes["test"] or 0):
        item, left, grade = guess.item("test", i), None, None
        state = guess.start(item)
        while grade is None:
            left = state.left
            state, reply = guess.step(state, f"# {left[len(left) // 2]}", "stop")
            grade = reply.grade if isinstance(reply, Done) else None
        assert grade.score == 1.0


def test_the_calculator_adds_up_and_right_calls_earn() -> None:
    task = build_task("calculator", {})
    item = task.item("test", 3)
    calls = task.calls(item)  # type: ignore[attr-defined]
    said, earned, grade = answers(task, item, [*calls, f"# {item.answer[1]}"])
    assert said[-1] == item.answer[1]
    assert earned == [0.1] * len(calls)
    assert grade is not None
    assert (grade.score, grade.correct) == (1.0, True)
    assert grade.components == pytest.approx({"answer": 1 - 0.1 * len(calls), "calls": 0.1 * len(calls)})


@pytest.mark.parametrize(
    ("turn", "said", "earned"),
    [("! 8 +3 +5", "6", 0.1), ("! 8 +3", "1", 0.1), ("! 8 +5", "3", 0.0), ("! 1 +3", "4", 0.0),
     ("! 8 +3 +5 -2 +1", "!", 0.0), ("8 +3", "!", 0.0), ("! 8", "!", 0.0), ("", "!", 0.0)],
)  # fmt: skip
def test_calls(turn: str, said: str, earned: float) -> None:
    task = build_task("calculator", {})
    item = Prompt(id="x", messages=({"role": "user", "content": "8 +3 +5 -2 +1 ?"},), answer=("8 +3 +5 -2 +1 ?", "5"))
    assert answers(task, item, [turn])[:2] == ([said], [earned])


def test_answers_end_the_episode_and_turns_run_out() -> None:
    task = build_task("calculator", {})
    item = task.item("train", 0)
    right = item.answer[1]
    wrong = str((int(right) + 1) % 10)
    for turns, why, score in (
        ([f"# {right}"], "right", 1.0),
        ([f"# {wrong}"], "wrong", 0.0),
        (["!"] * 5, "no answer", 0),
    ):
        grade = answers(task, item, turns)[2]
        assert grade is not None
        assert (grade.why, grade.score) == (why, score)
    deaf = build_task("calculator", {"feedback": False})
    assert answers(deaf, item, ["!"])[0] == ["?"]


def test_scores_stay_in_their_range_whatever_is_said() -> None:
    draw = random.Random(0)
    words = [*map(str, range(10)), "+1", "-2", "#", "!", "?", ""]
    for name in ("guess", "calculator"):
        for style in ("words", "text"):
            task = build_task(name, {"style": style, "max_candidates": 6} if name == "guess" else {"style": style})
            for i in range(40):
                turns = [" ".join(draw.choices(words, k=draw.randint(0, 5))) for _ in range(task.info.max_turns)]
                _, earned, grade = answers(task, task.item("train", i), turns)
                assert grade is not None
                assert 0 <= grade.score <= 1
                assert grade.correct == (grade.score >= task.info.threshold)
                assert sum(grade.components.values()) == pytest.approx(grade.score)
                assert sum(earned) <= grade.score + 1e-9


def test_english_for_models_that_read_it() -> None:
    task = build_task("guess", {"style": "text", "numbers": 20, "min_candidates": 2, "max_candidates": 3})
    item = task.item("train", 0)
    chosen, number = item.answer
    other = next(n for n in chosen if n != number)
    said, _, _ = answers(task, item, [f"I say {other}."])
    assert said == [f"Wrong. My number is {'higher' if number > other else 'lower'}. Guess again."]
    assert "within 3 guesses" in item.messages[0]["content"]
    assert answers(task, item, [f"Then {number}"])[2] is not None


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("guess", {"turns": 0}, "from 1 to 32"),
        ("guess", {"turn_reward": 0.5}, "less than 1"),
        ("guess", {"turn_reward": -0.1}, "less than 1"),
        ("guess", {"numbers": 40, "style": "text", "max_candidates": 20}, "sets of candidates"),
        ("guess", {"colour": 1}, "no such parameter"),
        ("guess", {"numbers": 20}, "from 4 to 10"),
        ("calculator", {"turns": 1}, "from 2 to 32"),
        ("calculator", {"call_ops": 0}, "from 1"),
        ("calculator", {"style": "loud"}, "words, text"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_task(name, params)
