"""Which prompts a run sees: the same in every arm, whatever the arm throws away."""

from __future__ import annotations

from collections import Counter

from harness.rollout.order import MAIN, REFILL, held_out_prompts, pool_prompts, train_prompts
from tests.fakes.small_tasks import NumbersTask


def ids(task: NumbersTask, seed: int, stream: int, first: int, count: int) -> list[str]:
    return [p.id for p in train_prompts(task, seed, stream, first, count)]


def test_a_finite_split_is_walked_in_a_new_order_every_epoch() -> None:
    task = NumbersTask(7)
    walk = ids(task, 0, MAIN, 0, 28)
    epochs = [walk[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == sorted(f"train-{i}" for i in range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert ids(task, 1, MAIN, 0, 28) != walk
    assert ids(task, 0, REFILL, 0, 28) != walk


def test_the_walk_does_not_depend_on_how_it_is_cut() -> None:
    for task in (NumbersTask(7), NumbersTask(None)):
        whole = ids(task, 3, MAIN, 0, 24)
        for size in (1, 5, 8, 24):
            parts = [ids(task, 3, MAIN, i, min(size, 24 - i)) for i in range(0, 24, size)]
            assert [p for part in parts for p in part] == whole


def test_an_endless_split_hardly_repeats() -> None:
    found = Counter(ids(NumbersTask(None), 0, MAIN, 0, 3000))
    assert max(found.values()) == 1


def test_held_out_prompts_are_the_first_items() -> None:
    task = NumbersTask(7)
    assert [p.id for p in held_out_prompts(task, "validation", 100)] == [f"validation-{i}" for i in range(5)]
    assert [p.id for p in held_out_prompts(task, "validation", 2)] == ["validation-0", "validation-1"]
    assert [p.id for p in held_out_prompts(task, "test", 3)] == ["test-0", "test-1", "test-2"]


def test_a_pool_is_walked_epoch_by_epoch_and_another_one_has_other_prompts() -> None:
    for task in (NumbersTask(20), NumbersTask(None)):
        pools = []
        for number in range(3):
            walk = [p.id for p in pool_prompts(task, 0, MAIN, 0, 18, 6, number)]
            epochs = [walk[i : i + 6] for i in range(0, 18, 6)]
            assert len({frozenset(epoch) for epoch in epochs}) == 1
            assert len(set(epochs[0])) == 6
            assert epochs[0] != epochs[1]
            assert [p.id for p in pool_prompts(task, 0, MAIN, 4, 9, 6, number)] == walk[4:13], "however it is cut"
            assert {p.id for p in pool_prompts(task, 0, REFILL, 0, 6, 6, number)} == set(walk)
            pools.append(set(walk))
        assert not pools[0] & pools[1] | pools[1] & pools[2] | pools[0] & pools[2]
        assert sorted(pools[0]) == sorted(ids(task, 0, MAIN, 0, 6)), (
            "the first pool is where a run without pools begins"
        )
