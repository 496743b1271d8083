"""`chain`: items, answers, rewards and process credit."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.ports import Split
from harness.core.registry import build_task
from harness.core.types import Prompt
from tasks.chain import STYLES, ChainTask, build, cold_start_answer
from tasks.splits import split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def prompt_of(content: str, answer: str) -> Prompt:
    return Prompt(id="x", messages=({"role": "user", "content": content},), answer=answer)


EXAMPLE = prompt_of("8 +3 +5 -2 ?", "4")


def test_the_documented_example() -> None:
    assert cold_start_answer(EXAMPLE, "direct") == "# 4"
    assert cold_start_answer(EXAMPLE, "scratch") == "+3 1 +5 6 -2 4 # 4"
    assert cold_start_answer(EXAMPLE, "verbose") == "+3 1 ! +5 6 ! -2 4 ! # 4"


@pytest.mark.parametrize("split", SPLITS)
def test_items_lie_in_their_split_and_hold_the_running_sum(split: Split) -> None:
    task, seen = build(), set()
    for index in range(700):
        prompt = task.item(split, index)
        content = prompt.messages[0]["content"]
        start, *ops, mark = content.split()
        assert split_of(content) == split
        assert mark == "?"
        assert 3 <= len(ops) <= 9
        assert prompt.answer == str((int(start) + sum(map(int, ops))) % 10)
        seen.add(len(ops))
    assert seen == set(range(3, 10))


def test_an_item_is_a_pure_function_of_split_and_index() -> None:
    one, two = build(), build(reward="graded", credit=False)
    later = [two.item("test", i) for i in reversed(range(50))][::-1]
    assert [one.item("test", i) for i in range(50)] == later
    assert one.item("train", 3 << 80) == one.item("train", 3 << 80)
    assert len({one.item("train", i).id for i in range(2000)}) > 1900


def test_equal_content_has_an_equal_id_and_other_content_another() -> None:
    prompts = [build().item("validation", i) for i in range(2000)]
    assert len({p.id for p in prompts}) == len({p.messages[0]["content"] for p in prompts})


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("reward", ["exact", "graded"])
def test_gold_is_correct_and_another_items_gold_is_not(style: str, reward: str) -> None:
    task = build(reward=reward)
    prompts = [task.item("test", i) for i in range(200)]
    for prompt, other in pairwise(prompts):
        grade = task.grade(prompt, cold_start_answer(prompt, style), "stop")  # type: ignore[arg-type]
        assert grade.correct
        assert grade.score >= task.info.threshold
        assert all(step.reward == 1.0 for step in grade.credit)
        assert task.grade(prompt, task.gold(prompt), "stop").correct
        wrong = task.grade(prompt, cold_start_answer(other, style), "stop")  # type: ignore[arg-type]
        assert wrong.correct == (other.answer == prompt.answer)


@pytest.mark.parametrize(
    ("text", "finish", "correct", "extracted", "why"),
    [
        ("# 4", "stop", True, "4", "right"),
        ("# 5", "stop", False, "5", "wrong"),
        ("# 4", "length", False, "4", "cut off"),
        ("# 5 # 4", "stop", True, "4", "right"),
        ("# 4 # 5", "stop", False, "5", "wrong"),
        ("# 4 !", "stop", False, "4 !", "wrong"),
        ("# 4 4", "stop", False, "4 4", "wrong"),
        ("4", "stop", False, None, "no answer"),
        ("# 4 #", "stop", False, "", "no answer"),
        ("", "stop", False, None, "no answer"),
    ],
)
def test_exact_reward(text: str, finish: str, correct: bool, extracted: str | None, why: str) -> None:
    grade = build().grade(EXAMPLE, text, finish)  # type: ignore[arg-type]
    assert (grade.score, grade.correct, grade.extracted, grade.why) == (float(correct), correct, extracted, why)


def test_graded_reward_orders_short_right_long_right_wrong_and_none() -> None:
    task = build(reward="graded")
    short, long = "# 4", "+3 1 ! " * 20 + "# 4"
    scores = [task.grade(EXAMPLE, text, "stop").score for text in (short, "+3 1 # 4", long, "+3 1 # 5", "# 5", "# #")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] > scores[2] == 0.5 > 0 > scores[3] > scores[4] > scores[5] == -1.0
    assert task.grade(EXAMPLE, short, "length").score == -1.0
    assert task.info.reward_range == (-1.0, 1.0)


@given(st.lists(st.sampled_from(["#", "!", "?", "+3", "-2", "1", "4", "6"]), max_size=60).map(" ".join))
def test_any_text_is_graded_inside_the_declared_range(text: str) -> None:
    for task in (build(), build(reward="graded")):
        low, high = task.info.reward_range
        grade = task.grade(EXAMPLE, text, "stop")
        assert low <= grade.score <= high
        assert grade.correct == (grade.score >= task.info.threshold)
        ends = [step.span for step in grade.credit]
        assert all(0 <= a < b <= len(text) for a, b in ends)
        assert all(b <= c for (_, b), (c, _) in pairwise(ends))


def test_credit_spans_cover_the_steps_and_tell_right_from_wrong() -> None:
    text = "+3 1 ! +5 7 -2 4 ! +1 5 -4 # 4"
    credit = build().grade(EXAMPLE, text, "stop").credit
    assert [text[slice(*c.span)] for c in credit] == ["+3 1 !", "+5 7", "-2 4 !", "+1 5", "-4"]
    assert [c.reward for c in credit] == [1.0, 0.0, 1.0, 0.0, 0.0]  # wrong value; beyond the last operation; no value
    assert build().grade(EXAMPLE, "# 4", "stop").credit == ()
    assert build(credit=False).grade(EXAMPLE, text, "stop").credit == ()


@pytest.mark.parametrize(
    ("argument", "params", "hint"),
    [
        ("x", {}, "no argument"),
        ("", {"max_op": 4}, "did you mean max_ops"),
        ("", {"min_ops": 0}, "1 to 512"),
        ("", {"min_ops": True}, "1 to 512"),
        ("", {"min_ops": 5, "max_ops": 4}, "min_ops <= max_ops"),
        ("", {"min_ops": 1, "max_ops": 1}, "too few"),
        ("", {"reward": "binary"}, "exact, graded"),
        ("", {"credit": "yes"}, "true or false"),
    ],
)
def test_bad_parameters_are_refused_with_what_to_use_instead(argument: str, params: dict, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        build(argument, **params)


def test_long_chains_draw_every_operation() -> None:
    task = build_task("chain", {"min_ops": 60, "max_ops": 60})
    contents = [task.item("train", i).messages[0]["content"].split() for i in range(100)]
    assert {len(words) for words in contents} == {62}
    assert all(len({words[position] for words in contents}) == 10 for position in range(1, 61))


def test_it_is_registered_and_fast() -> None:
    task = build_task("chain", {})
    assert isinstance(task, ChainTask)
    start = time.perf_counter()
    prompts = [task.item("train", i) for i in range(2000)]
    graded = [task.grade(p, cold_start_answer(p, "verbose"), "stop") for p in prompts for _ in range(4)]
    elapsed = time.perf_counter() - start
    assert len(graded) == 8000
    assert elapsed < 2.0  # 0.1 s on a quiet machine


def test_chain_long_has_answers_of_128_to_512_tokens() -> None:
    task, lengths = build_task("chain-long", {}), []
    for split in SPLITS:
        for index in range(100):
            prompt = task.item(split, index)
            assert split_of(prompt.messages[0]["content"]) == split
            for style in ("scratch", "verbose"):
                text = cold_start_answer(prompt, style)
                grade = task.step(task.start(prompt), text, "stop")[1].grade
                assert grade.correct
                assert all(credit.reward == 1.0 for credit in grade.credit)
                lengths.append(len(text.split()) + 1)  # one token per word, and the end token
    assert 128 <= min(lengths) < 160
    assert 480 < max(lengths) <= 512


def test_the_tempting_reward_pays_for_length_and_counts_as_right_what_is_right() -> None:
    task = build(reward="tempting")
    short, padded = task.grade(EXAMPLE, "# 4", "stop"), task.grade(EXAMPLE, "! " * 254 + "# 4", "stop")
    assert (short.score, padded.score) == (1 + 0.5 * 2 / 512, 1.25)
    assert short.correct
    assert padded.correct
    wrong = task.grade(EXAMPLE, "! " * 2000 + "# 5", "stop")
    assert (wrong.score, wrong.correct) == (0.5, False)
    assert task.info.reward_range == (0.0, 1.5)
    assert (task.info.threshold, task.info.graded) == (1.0, True)
