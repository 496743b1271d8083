"""A step's rollout batch: dynamic sampling with its bounded refill, and the same prompts in every arm."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.algorithm import Algorithm, override
from harness.core.errors import UsageError
from harness.core.registry import algorithm as preset
from harness.core.types import RolloutGroup
from harness.rollout.collect import Collector
from harness.rollout.gather import Gathered, gather
from harness.rollout.order import MAIN, train_prompts
from harness.rollout.refill import Refill, RefillExhausted, refill
from tests.fakes.small_tasks import NumbersCodec, NumbersTask
from tests.fakes.table_sampler import ScriptedSampler

G = 4


def mixed_if_divisible(by: int) -> Any:
    """Half of the siblings are right where the prompt's number is divisible, else all are wrong."""
    return lambda prompt, key: (1, 0) if prompt[0] % by == 0 and key[3] % 2 == 0 else (0,)


def collector(answer: Any, train: int | None = None) -> Collector:
    return Collector(
        task=NumbersTask(train),
        sampler=ScriptedSampler(answer),
        codec=NumbersCodec(),
        max_new_tokens=5,
        temperature=1.0,
        context=100,
        clock=lambda: 0.0,
    )


def dapo(**admission: Any) -> Algorithm:
    changes = {f"admission.{k}": v for k, v in admission.items()}
    return override(preset("dapo"), {"siblings": G, **changes})


def step(found: Collector, algorithm: Algorithm, rollout: int = 0, cursor: int = 0, wanted: int = 6) -> Gathered:
    return gather(found, algorithm, wanted=wanted, seed=0, rollout=rollout, refill_cursor=cursor)


def test_refill_stops_when_enough_were_admitted() -> None:
    found = step(collector(mixed_if_divisible(2)), dapo())
    assert len(found.groups) == 6
    assert not found.exhausted
    assert 1 < found.rounds <= 10
    assert len(found.sampled) == 6 * found.rounds
    assert found.refill_cursor == 6 * (found.rounds - 1)
    assert all(int(g.prompt.answer) % 2 == 0 for g in found.groups)
    admitted = [g for g in found.sampled if int(g.prompt.answer) % 2 == 0]
    assert found.groups == admitted[:6], "in the order of generation, the surplus thrown away"


@pytest.mark.parametrize("max_rounds", [1, 3])
def test_refill_is_bounded(max_rounds: int) -> None:
    found = step(collector(lambda prompt, key: (0,)), dapo(max_rounds=max_rounds))
    assert found.rounds == max_rounds
    assert found.exhausted
    assert found.groups == []
    assert len(found.sampled) == 6 * max_rounds


def test_exhaustion_raises_where_asked() -> None:
    with pytest.raises(RefillExhausted, match="0 of 6 prompts were admitted after 2 generation batches"):
        step(collector(lambda prompt, key: (0,)), dapo(max_rounds=2, on_exhausted="raise"))


def test_a_refill_never_shifts_the_main_prompts() -> None:
    cursor = 0
    for rollout in range(4):
        filtered = step(collector(mixed_if_divisible(3)), dapo(), rollout, cursor)
        plain = step(collector(mixed_if_divisible(3)), override(preset("grpo"), {"siblings": G}), rollout)
        assert [g.prompt for g in filtered.sampled[:6]] == [g.prompt for g in plain.sampled]
        assert [g.prompt for g in plain.groups] == train_prompts(NumbersTask(None), 0, MAIN, 6 * rollout, 6)
        assert filtered.refill_cursor >= cursor
        cursor = filtered.refill_cursor
    assert cursor > 0


def several_steps(algorithm: Algorithm, steps: int = 6, by: int = 2) -> list[Gathered]:
    """Consecutive steps under weights that differ from step to step."""
    found: list[Gathered] = []
    workers = collector(mixed_if_divisible(by))
    for rollout in range(steps):
        before = found[-1] if found else None
        workers.sampler.sync(10 * rollout)
        found.append(
            gather(
                workers, algorithm, wanted=6, seed=0, rollout=rollout,
                refill_cursor=before.refill_cursor if before else 0, carried=before.carried if before else (),
            )
        )  # fmt: skip
    return found


def names(groups: Sequence[RolloutGroup]) -> list[str]:
    return [g.prompt.id for g in groups]


def admitted_in(step: Gathered) -> list[RolloutGroup]:
    return [g for g in step.sampled if int(g.prompt.answer) % 2 == 0]


def test_with_carry_over_the_batches_are_the_stream_of_admitted_groups_cut_into_pieces() -> None:
    """Nothing is dropped, nothing trained on twice; without it, each batch begins with its own step's groups."""
    steps = several_steps(dapo(carry_over=True))
    stream = [name for step in steps for name in names(admitted_in(step))]
    assert [names(step.groups) for step in steps] == [stream[6 * i : 6 * i + 6] for i in range(6)]
    assert names(steps[-1].carried) == stream[36:]
    assert any(step.carried for step in steps)
    assert all(len(step.carried) < 6 for step in steps), "the next step uses all of it"
    assert not any(step.exhausted for step in steps)
    plain = several_steps(dapo())
    assert [names(step.groups) for step in plain] == [names(admitted_in(step))[:6] for step in plain]
    assert not any(step.carried for step in plain)
    assert sum(step.rounds for step in steps) < sum(step.rounds for step in plain), "that is what it is for"
    first = [g.prompt for g in plain[0].sampled[:6]]
    assert [g.prompt for g in steps[0].sampled[:6]] == first, "the main prompts are the same in every arm"


def test_carried_groups_are_sampled_once_and_stay_what_they_were() -> None:
    steps = several_steps(dapo(carry_over=True))
    seen = 0
    for step, later in pairwise(steps):
        assert not {id(g) for g in later.sampled} & {id(g) for g in step.carried}
        assert [id(g) for g in later.groups[: len(step.carried)]] == [id(g) for g in step.carried]
        origin = {g.prompt.id: g for g in step.sampled}
        for group in step.carried:
            assert group.prompt.answer is None, "a checkpoint could not keep it"
            for row, same in zip(group.trajectories, origin[group.prompt.id].trajectories, strict=True):
                assert replace(row, prompt=same.prompt) == same
            seen += 1
    assert seen > 5


def test_a_rule_that_does_not_carry_ignores_what_was_carried() -> None:
    """After a schedule has switched it off: the surplus is dropped, its tokens were counted when sampled."""
    before = several_steps(dapo(carry_over=True), steps=1)[0]
    assert before.carried
    after = gather(
        collector(mixed_if_divisible(2)), dapo(), wanted=6, seed=0, rollout=1, refill_cursor=0, carried=before.carried
    )
    assert names(after.groups) == names(admitted_in(after))[:6]
    assert after.carried == []


@given(
    stream=st.lists(st.lists(st.integers(0, 99), max_size=8), min_size=1, max_size=12),
    wanted=st.integers(1, 6),
    max_rounds=st.integers(0, 4),
)
def test_carry_over_against_a_queue(stream: list[list[int]], wanted: int, max_rounds: int) -> None:
    """A queue that every generation batch is put into and every step takes `wanted` from."""
    plan = Refill(wanted=wanted, max_rounds=max_rounds, on_exhausted="train", carries=True)
    queue: deque[int] = deque()
    carried: tuple[int, ...] = ()
    left = list(stream)
    while left:
        found = refill(left, plan, carried)
        rounds = 0
        while len(queue) < wanted and (not max_rounds or rounds < max_rounds) and rounds < len(left):
            queue.extend(left[rounds])
            rounds += 1
        assert found.rounds == rounds
        assert found.kept == tuple(queue.popleft() for _ in range(min(wanted, len(queue))))
        assert found.exhausted == (len(found.kept) < wanted)
        assert found.carried == tuple(queue)
        if rounds == 0:
            break
        left, carried = left[rounds:], found.carried


def test_keys_are_the_same_in_every_arm() -> None:
    wide, narrow = collector(mixed_if_divisible(2)), collector(mixed_if_divisible(2))
    step(wide, preset("gfpo"))
    step(narrow, preset("grpo"))
    asked = [c.sampler.asked for c in (wide, narrow)]  # type: ignore[attr-defined]
    for many, few in zip(*asked, strict=True):
        assert many.keys[:8] == few.keys


def test_a_prompt_that_comes_again_draws_new_numbers() -> None:
    """Three items and six prompts per batch: copies of a prompt must not be copies of its responses."""
    few = collector(lambda prompt, key: (0,), train=3)
    step(few, dapo(max_rounds=3))
    requests = few.sampler.asked  # type: ignore[attr-defined]
    assert len({r.prompt_ids for r in requests}) == 3
    assert len({r.keys for r in requests}) == len(requests) == 18
    once = collector(lambda prompt, key: (0,), train=3)
    step(once, override(preset("grpo"), {"siblings": G}), wanted=3)
    first = {r.prompt_ids: r.keys for r in reversed(requests)}
    assert {r.prompt_ids: r.keys for r in once.sampler.asked} == first  # type: ignore[attr-defined]


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    tight = replace(collector(mixed_if_divisible(2)), context=5)
    with pytest.raises(UsageError, match=r"(?s)of 1 tokens and responses of up to 5.*max_new_tokens=4 or less"):
        step(tight, dapo())


def test_trajectories_carry_what_was_sampled() -> None:
    found = step(collector(mixed_if_divisible(1)), dapo())
    for group in found.groups:
        assert [t.sample for t in group.trajectories] == list(range(G))
        for t in group.trajectories:
            assert t.grade.correct == (t.sample % 2 == 0)
            assert t.text == ("yes no" if t.grade.correct else "no")
            assert t.loss_mask == (True,) * len(t.response_ids)
            assert t.prompt_ids == (t.prompt.answer,)
            assert t.finish_reason == "stop"


def test_a_rule_that_replaces_generates_only_the_missing_prompts() -> None:
    algorithm = override(preset("grpo"), {"siblings": G, "admission": "mean_between"})
    found = step(collector(mixed_if_divisible(2)), algorithm)
    whole = step(collector(mixed_if_divisible(2)), override(preset("grpo"), {"siblings": G, "admission": "mixed"}))
    assert [g.prompt for g in found.groups][:3] == [g.prompt for g in whole.groups][:3]
    assert len(found.groups) == 6
    assert len(found.sampled) < len(whole.sampled)
    assert found.refill_cursor == len(found.sampled) - 6
