"""A step's rollout batch: dynamic sampling with its bounded refill, and the same prompts in every arm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.core.algorithm import Algorithm, override
from harness.core.errors import UsageError
from harness.core.registry import algorithm as preset
from harness.rollout.collect import Collector
from harness.rollout.gather import Gathered, gather
from harness.rollout.order import MAIN, train_prompts
from harness.rollout.refill import RefillExhausted
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
