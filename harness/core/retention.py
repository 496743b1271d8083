"""Which checkpoints to keep: pure functions of the steps at which there are some.

Recovery needs one from before a collapse and one from half way to it, and when a collapse is confirmed its onset lies
tens of steps back. So a ladder is kept that is dense near the present and thins out with age.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Literal

from harness.core.collapse import Episode
from harness.core.spec import CheckpointSpec

Role = Literal["last_healthy", "half", "collapsed"]
ROLES: tuple[Role, ...] = ("last_healthy", "half", "collapsed")
GIB = 2**30


def rungs(steps: Iterable[int], now: int, every: int, dense: int) -> frozenset[int]:
    """The steps that the ladder keeps at step `now`: s stays if it is a multiple of every * 2^l.

    Its level l is the smallest with now - s < dense * every * 2^l. So there are `dense` rungs near the present, half
    as many per doubling of the age, and step 0. What was dropped once is never wanted again: thinning now and then,
    or only at the end, gives the same.
    """
    if not every or not dense:
        return frozenset()
    return frozenset(s for s in steps if 0 <= s <= now and s % (every << _level(now - s, every, dense)) == 0)


def _level(age: int, every: int, dense: int) -> int:
    level = 0
    while age >= (dense * every) << level:
        level += 1
    return level


def most_rungs(now: int, every: int, dense: int) -> int:
    """Upper bound of the number of rungs at step `now`: dense + levels * dense / 2."""
    return dense + _level(now, every, dense) * ceil(dense / 2) if every and dense else 0


def fitting(now: int, every: int, dense: int, room: int) -> int:
    """The largest of dense, dense / 2, ..., 1 of which no more than `room` rungs can come; 0: not even those.

    It only falls as `now` grows, so a ladder thinned for lack of room never wants a dropped rung either.
    """
    while dense and most_rungs(now, every, dense) > room:
        dense //= 2
    return dense


def pinned(steps: Sequence[int], episode: Episode, margin: int) -> Mapping[Role, int]:
    """The checkpoints that the recovery from an episode starts from, as far as there are any.

    last_healthy: the newest at or before onset - margin (the first of all, where the onset comes sooner than that);
    half: the one nearest to half of the onset's steps, since damage may precede the onset; collapsed: the first at or
    after the confirmation.
    """
    if not steps:
        return {}
    found: dict[Role, int] = {}
    healthy = [s for s in steps if s <= max(min(steps), episode.onset - margin) and s < max(1, episode.onset)]
    if episode.last_healthy is not None and episode.last_healthy in steps:
        found["last_healthy"] = episode.last_healthy
    elif healthy:
        found["last_healthy"] = max(healthy)
    before = [s for s in steps if s < max(1, episode.onset)]
    if before:
        found["half"] = min(before, key=lambda s: (abs(s - episode.onset / 2), s))
    after = [s for s in steps if s >= episode.confirm]
    if after:
        found["collapsed"] = min(after)
    return found


def keep(
    steps: Iterable[int],
    spec: CheckpointSpec,
    *,
    size: int,
    best: int | None = None,
    episode: Episode | None = None,
    done: bool = False,
) -> frozenset[int]:
    """The checkpoints to keep of those at `steps`; the newest one is the present, and each takes `size` bytes.

    The newest N; the best on validation; those pinned by an episode; the ladder, until the run is `done` without one.
    """
    present = sorted(set(steps))
    if not present:
        return frozenset()
    kept = set(present[-spec.newest :])
    if spec.best and best in present:
        kept.add(best)
    if episode is not None:
        kept |= set(pinned(present, episode, spec.margin).values())
    if not done or episode is not None or spec.ladder == "always":
        now, space = present[-1], room(spec, size, collapsed=episode is not None)
        kept |= rungs(present, now, spec.every, fitting(now, spec.every, spec.dense, space))
    return frozenset(kept)


def others(spec: CheckpointSpec, *, collapsed: bool) -> int:
    """Most checkpoints besides the ladder: the newest, the best and those of an episode."""
    return spec.newest + int(spec.best) + (len(ROLES) if collapsed else 0)


def room(spec: CheckpointSpec, size: int, *, collapsed: bool) -> int:
    """Rungs for which the limit leaves room beside everything else, at `size` bytes each."""
    return max(0, int(spec.limit_gib * GIB / max(1, size)) - others(spec, collapsed=collapsed))


def most(spec: CheckpointSpec, steps: int, size: int) -> int:
    """Upper bound of the checkpoints that lie on the disk during a run of `steps` steps, the one being written too.

    In bytes: at most the limit and one more, or, where even those without a ladder exceed it, `others` and one more.
    """
    ladder = most_rungs(steps, spec.every, spec.dense)
    return 1 + max(others(spec, collapsed=c) + min(ladder, room(spec, size, collapsed=c)) for c in (False, True))
