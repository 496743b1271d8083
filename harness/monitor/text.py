"""Degenerate text: repetition, over-confidence and duplicates among siblings. Integers only, so numpy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from harness.monitor.numbers import Value
from harness.monitor.sampled import Rows

IntArray = npt.NDArray[np.int64]

NGRAM = 4
SHORTEST = 16  # responses with fewer tokens say nothing about repetition
REPEATED_SHARE = 0.5
LONGEST_PERIOD = 32
REPEATS = 8
_CONFIDENT = math.log(0.99)
_CELLS = 4_000_000  # tokens looked at together, which bounds memory
_MULTIPLIER = np.int64(0x5851F42D4C957F2D)  # Knuth's MMIX multiplier, mixes token ids into one 64-bit code


def text_metrics(rows: Rows) -> dict[str, Value]:
    """rep-4 = 1 - #unique 4-grams / #4-grams; periodic = a suffix of period p <= 32 that stands there 8 times."""
    if rows.mask.shape[0] == 0:
        return {}
    mask = rows.mask.cpu().numpy()
    ids, lengths = packed(rows.ids.cpu().numpy().astype(np.int64, copy=False), mask)
    long = np.flatnonzero(lengths >= SHORTEST)
    found: dict[str, Value] = {}
    if len(long):
        parts = np.array_split(long, max(1, math.ceil(len(long) * ids.shape[1] / _CELLS)))
        rep = np.concatenate([rep_n(ids[part], lengths[part], NGRAM) for part in parts])
        loop = np.concatenate([periodic(ids[part], lengths[part]) for part in parts])
        found["text/rep4_mean"] = float(rep.mean())
        found["text/rep_rate"] = float(((rep > REPEATED_SHARE) | loop).mean())
    found["text/confident_run_max"] = longest_run((rows.logp.cpu().float().numpy() > _CONFIDENT) & mask)
    found["text/distinct_in_group"] = distinct_share(ids, rows.group.cpu().numpy())
    if rows.unreadable is not None:
        found["text/nonvalid_rate"] = rows.unreadable / len(lengths)
    if rows.ungraded is not None:
        found["reward/failed_rate"] = rows.ungraded / len(lengths)
    return found


def packed(ids: IntArray, mask: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """Each row's unmasked tokens moved to the left, -1 behind them; and the lengths."""
    lengths = mask.sum(1, dtype=np.int64)
    if not (mask[:, 1:] <= mask[:, :-1]).all():
        order = np.argsort(~mask, axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
    width = int(lengths.max(initial=0))
    tail = np.arange(width) >= lengths[:, None]
    return np.where(tail, -1, ids[:, :width]), lengths


def rep_n(ids: IntArray, lengths: IntArray, n: int) -> npt.NDArray[np.float64]:
    """1 - #unique n-grams / #n-grams per row; n-grams are compared by a 64-bit code. Rows need n tokens."""
    width = ids.shape[1] - n + 1
    codes = np.zeros((ids.shape[0], width), dtype=np.int64)
    for k in range(n):
        codes = (codes + ids[:, k : k + width]) * _MULTIPLIER
    count = lengths - n + 1
    codes[np.arange(width) >= count[:, None]] = np.iinfo(np.int64).max
    codes.sort(axis=1)
    fresh = (codes[:, 1:] != codes[:, :-1]) & (np.arange(1, width) < count[:, None])
    unique = 1 + fresh.sum(1)
    return np.asarray(1 - unique / count, dtype=np.float64)


def periodic(ids: IntArray, lengths: IntArray) -> npt.NDArray[np.bool_]:
    """Whether the last 8 p tokens repeat with some period p <= 32, per row."""
    width = ids.shape[1]
    places = lengths[:, None] - 1 - np.arange(min(width, REPEATS * LONGEST_PERIOD))
    backwards = np.take_along_axis(ids, np.maximum(places, 0), axis=1)
    found = np.zeros(len(ids), dtype=np.bool_)
    for p in range(1, min(LONGEST_PERIOD, width // REPEATS) + 1):
        span = REPEATS * p
        same = (backwards[:, : span - p] == backwards[:, p:span]).all(1)
        found |= same & (lengths >= span)
    return found


def longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """Length of the longest run of true positions in any row."""
    if not flags.size:
        return 0
    place = np.arange(1, flags.shape[1] + 1)
    last_break = np.maximum.accumulate(np.where(flags, 0, place), axis=1)
    return int((place - last_break).max())


def distinct_share(ids: IntArray, group: IntArray) -> float:
    """Mean over groups of #unique responses / G."""
    members: dict[int, list[bytes]] = {}
    for row, g in zip(np.ascontiguousarray(ids), group.tolist(), strict=True):
        members.setdefault(g, []).append(row.tobytes())
    return math.fsum(len(set(m)) / len(m) for m in members.values()) / len(members)
