"""When an event began: a change point in its evidence, found once the event is confirmed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BACK = 60  # steps before the first flagged one that are looked at, in a run of 150 and more
ENDS = 3  # values before a break, and those that stand for where it led
CLEAR_CUT = 0.5  # of the way from the old level to the last values: a slow trend alone is no break


def backdated(
    steps: Sequence[int], values: Sequence[float | None], flagged: int, *, back: int = BACK, after: int = 0
) -> int:
    """The onset: the break of a least-squares fit of two levels on [flagged - back, confirm], if it comes earlier.

    Steps up to `after`, where an earlier event ended, are left out.

    The split that minimises the squares around both means; taken where it lowers them by more than 3 sigma^2 log n
    (sigma from neighbouring differences) and leads at least half the way to the last values.
    """
    known = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None and s >= flagged - back and s > after]
    if len(known) <= ENDS:
        return flagged
    place = best_break([v for _, v in known])
    return flagged if place is None else min(flagged, known[place][0])


def best_break(values: Sequence[float]) -> int | None:
    """Index of the first value of the second level; None where one level fits as well."""
    x = np.asarray(values, dtype=np.float64)
    scale = float(np.abs(x).max())
    if not 0.0 < scale < math.inf:
        return None
    x = x / scale
    n, total, squares = len(x), np.cumsum(x), np.cumsum(np.square(x))
    left = np.arange(1, n)
    cost = squares[-1] - np.square(total[:-1]) / left - np.square(total[-1] - total[:-1]) / (n - left)
    allowed = slice(ENDS - 1, n - 1)
    place = int(np.argmin(cost[allowed])) + ENDS
    gain = float(squares[-1] - total[-1] ** 2 / n - cost[place - 1])
    sigma = 1.4826 * float(np.median(np.abs(np.diff(x)))) / math.sqrt(2)
    before, after = float(x[:place].mean()), float(x[place:].mean())
    ended = float(np.median(x[-ENDS:]))
    cut = abs(after - before) >= CLEAR_CUT * abs(ended - before)
    return place if gain > 3 * sigma**2 * math.log(n) and cut else None
