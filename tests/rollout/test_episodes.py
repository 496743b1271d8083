"""Episodes of several turns: one row of tokens, the replies masked out, a random stream and a reward per turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.ports import Split, Task, TaskInfo
from harness.core.types import Credit, Done, FinishReason, Grade, Message, Observation, Prompt
from harness.rollout.collate import collate
from harness.rollout.collect import Collector
from harness.rollout.episodes import FULL
from harness.train.carried import pack, unpack
from tests.fakes.small_tasks import NumbersCodec
from tests.fakes.table_sampler import ScriptedSampler


class Countdown(Task):
    """Prompt n wants n turns; the reply after turn k is the number 10 + k, and each such turn earns k tenths."""

    info = TaskInfo(name="countdown", reward_range=(-1.0, 1.0), threshold=1.0, max_turns=4)

    def item(self, split: Split, index: int) -> Prompt:
        message: Message = {"role": "user", "content": str(index)}
        return Prompt(id=f"{split}-{index}", messages=(message,), answer=index)

    def start(self, prompt: Prompt) -> tuple[int, int]:
        return 1, int(prompt.answer)

    def step(self, state: tuple[int, int], text: str, finish_reason: FinishReason) -> tuple[Any, Observation | Done]:
        turn, wanted = state
        if turn == wanted:
            credit = (Credit(turn=turn - 1, span=(0, len(text)), name="last", reward=0.5),)
            return state, Done(grade=Grade(score=1.0, correct=True, credit=credit))
        message: Message = {"role": "user", "content": str(10 + turn)}
        return (turn + 1, wanted), Observation(messages=(message,), reward=turn / 10)


class Talk(NumbersCodec):
    """A reply is its number twice."""

    def encode_reply(self, messages: Sequence[Message], reply: Sequence[Message], last: int) -> tuple[int, ...]:
        return (int(reply[-1]["content"]),) * 2


def collector(sampler: ScriptedSampler, **changes: Any) -> Collector:
    given: dict[str, Any] = {
        "task": Countdown(), "sampler": sampler, "codec": Talk(), "max_new_tokens": 5, "temperature": 1.0,
        "context": 100, "clock": lambda: 0.0,
    }  # fmt: skip
    return Collector(**{**given, **changes})


def played(counts: Sequence[int], samples: int = 1, **changes: Any) -> tuple[list[Any], ScriptedSampler]:
    """Responses of one token per turn taken so far, so that turns differ in length."""
    sampler = ScriptedSampler(lambda prompt, key: (1,) * (key[-1] + 1))
    found = collector(sampler, **changes)
    prompts = [found.task.item("train", n) for n in counts]
    return found.collect(prompts, samples, (3, 7)).groups, sampler


def test_a_row_holds_turns_and_replies_in_order() -> None:
    (one, three), _ = played([1, 3])
    row = three.trajectories[0]
    assert row.response_ids == (1, 11, 11, 1, 1, 12, 12, 1, 1, 1)
    assert row.loss_mask == (True, False, False, True, True, False, False, True, True, True)
    assert row.logp == tuple(-0.5 if m else 0.0 for m in row.loss_mask)
    assert row.entropy == tuple(0.7 if m else 0.0 for m in row.loss_mask)
    assert [end for end, _ in row.turns] == [0, 4, 9]
    assert [r for _, r in row.turns] == pytest.approx([0.1, 0.2, 0.7]), "the last turn earns the rest of the score"
    assert row.num_tokens == sum(n for n, _ in row.segments) == 6
    assert row.credit == ((9, 0.5),), "a span of a turn ends at its token in the row"
    assert row.text.splitlines()[1] == "[user] 11"
    assert one.trajectories[0].response_ids == (1,)
    assert one.trajectories[0].turns == ((0, 1.0),)


def test_the_next_turn_continues_the_very_tokens_and_has_random_numbers_of_its_own() -> None:
    _, sampler = played([3], samples=2)
    first, *later = sampler.asked
    assert [key[-2:] for key in first.keys] == [(0, 0), (1, 0)]
    assert [r.prompt_ids for r in later] == [(3, 1, 11, 11)] * 2 + [(3, 1, 11, 11, 1, 1, 12, 12)] * 2
    assert [r.keys[0] for r in later] == [(*first.keys[i][:-1], turn) for turn in (1, 2) for i in (0, 1)]
    assert all(len(r.keys) == 1 for r in later)


def test_an_episode_that_no_longer_fits_ends_as_cut_off() -> None:
    (group,), _ = played([4], context=12)  # 1 + 1 + 2 + 2 + 2 tokens and 5 more do not fit
    row = group.trajectories[0]
    assert row.response_ids == (1, 11, 11, 1, 1)
    assert row.loss_mask == (True, False, False, True, True)
    assert (row.finish_reason, row.grade.why, row.grade.score) == ("length", FULL, -1.0)
    assert [r for _, r in row.turns] == pytest.approx([0.1, -1.1])


def test_a_task_that_goes_on_for_ever_is_an_error() -> None:
    with pytest.raises(UsageError, match="max_turns=4"):
        played([5])


def test_tensors_and_checkpoints_keep_the_turns() -> None:
    groups, _ = played([1, 3], samples=2)
    batch = collate(groups)
    assert batch.turns is not None
    assert batch.turns.row.tolist() == [0, 1, 2, 2, 2, 3, 3, 3]
    assert batch.turns.end.tolist() == [0, 0, 0, 4, 9, 0, 4, 9]
    assert batch.turns.reward.tolist() == pytest.approx([1, 1, 0.1, 0.2, 0.7, 0.1, 0.2, 0.7])
    assert batch.mask.sum(1).tolist() == [1, 1, 6, 6]
    again = unpack(*pack(groups))
    assert [g.trajectories for g in again] == [
        tuple(replace(t, prompt=replace(t.prompt, answer=None)) for t in g.trajectories) for g in groups
    ]
