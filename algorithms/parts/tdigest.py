"""Quartiles of a stream by a t-digest whose state is a flat tuple of floats, so that a checkpoint can hold it.

A t-digest keeps a bounded number of centroids (mean, weight), small ones at both ends of the distribution and larger
ones in its middle, and interpolates quantiles between them. Up to that number of values it keeps each of them, and the
quantiles are exact. Source: Dunning & Ertl, "Computing extremely accurate quantiles using t-digests" (1902.04023);
computed by the package fastdigest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastdigest import TDigest

State = tuple[float, ...]  # () or (values, mass, sum, min, max, mean 1, weight 1, mean 2, weight 2, ...)
HEAD = ("n_values", "mass", "sum", "min", "max")


class Seen(NamedTuple):
    """A stream after one more value."""

    values: int  # added so far
    quartiles: tuple[float, float, float]


def available() -> bool:
    """Whether the package that computes it is installed."""
    try:
        import fastdigest
    except ImportError:
        return False
    return bool(fastdigest)


def follow(state: State, values: Sequence[float], centroids: int) -> tuple[list[Seen], State]:
    """Adds the values one by one, at most `centroids` kept; what is seen after each of them, and the new state."""
    digest = _restored(state, centroids)
    found = []
    for value in values:
        digest.update(value)
        q25, q50, q75 = (digest.quantile(q) for q in (0.25, 0.5, 0.75))
        found.append(Seen(values=digest.n_values, quartiles=(q25, q50, q75)))
    return found, _state(digest) if values else state


def _restored(state: State, centroids: int) -> TDigest:
    from fastdigest import TDigest

    if not state:
        return TDigest(centroids)
    head = dict(zip(HEAD, state, strict=False))
    rest = state[len(HEAD) :]
    pairs = [{"m": mean, "c": weight} for mean, weight in zip(rest[::2], rest[1::2], strict=True)]
    return TDigest.from_dict(
        {**head, "n_values": int(head["n_values"]), "max_centroids": centroids, "centroids": pairs}
    )


def _state(digest: TDigest) -> State:
    data: dict[str, Any] = digest.to_dict()
    return (*(float(data[name]) for name in HEAD), *(x for c in data["centroids"] for x in (c["m"], c["c"])))
