"""Which items a run sees, and in which order: the same in every arm at the same seed."""

from __future__ import annotations

from harness.core.ports import Split, Task
from harness.core.randomness import permutation, uniforms
from harness.core.types import Prompt

POOL = 2  # stream of the orders inside a pool
MAIN, REFILL = 0, 1  # separate streams, so that a refill never shifts the main order
_ENDLESS = 1 << 40


def train_prompts(task: Task, seed: int, stream: int, first: int, count: int) -> list[Prompt]:
    """Items `first .. first+count-1` of a stream of the train split.

    A finite split is walked epoch by epoch, each in its own random order; an endless one is drawn from.
    """
    size = task.info.sizes.get("train")
    if size is None:
        draws = uniforms([(seed, stream, i) for i in range(first, first + count)], 1)[:, 0]
        return [task.item("train", int(u * _ENDLESS)) for u in draws]
    orders: dict[int, list[int]] = {}
    prompts = []
    for i in range(first, first + count):
        epoch, offset = divmod(i, size)
        if epoch not in orders:
            orders[epoch] = permutation((seed, stream, epoch), size).tolist()
        prompts.append(task.item("train", orders[epoch][offset]))
    return prompts


def pool_prompts(task: Task, seed: int, stream: int, first: int, count: int, size: int, number: int) -> list[Prompt]:
    """Prompts `first .. first+count-1` of a walk over a pool: `size` train prompts, in a new order in every epoch.

    Pool k is the seed's prompts k size .. (k+1) size - 1, so pools of one size share none until the split is used up.
    """
    places: list[int] = []
    orders: dict[int, list[int]] = {}
    for i in range(first, first + count):
        epoch, offset = divmod(i, size)
        if epoch not in orders:
            orders[epoch] = permutation((seed, POOL, stream, number, epoch), size).tolist()
        places.append(number * size + orders[epoch][offset])
    known = {place: train_prompts(task, seed, MAIN, place, 1)[0] for place in dict.fromkeys(places)}
    return [known[place] for place in places]


def held_out_prompts(task: Task, split: Split, count: int) -> list[Prompt]:
    """The first `count` items of a held-out split (all of a smaller one): the same for every run."""
    size = task.info.sizes.get(split)
    return [task.item(split, i) for i in range(count if size is None else min(count, size))]
