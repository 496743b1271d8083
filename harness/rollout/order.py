"""Which items a run sees, and in which order: the same in every arm at the same seed."""

from __future__ import annotations

from harness.core.ports import Split, Task
from harness.core.randomness import permutation, uniforms
from harness.core.types import Prompt

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


def held_out_prompts(task: Task, split: Split, count: int) -> list[Prompt]:
    """The first `count` items of a held-out split (all of a smaller one): the same for every run."""
    size = task.info.sizes.get(split)
    return [task.item(split, i) for i in range(count if size is None else min(count, size))]
