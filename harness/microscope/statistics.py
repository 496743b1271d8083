"""Numbers about gradient weights: where they lie, how concentrated they are, how alike two gradients are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from harness.core.shapes import Bool, Float, Int, Tensor

BINS = 10


def effective_number(x: Tensor) -> float:
    """(sum |x|)^2 / sum x^2: n for n equal entries, 1 when one holds everything, 0 when all are 0."""
    size = x.double().abs()
    square = float(size.square().sum())
    return float(size.sum()) ** 2 / square if square > 0 else 0.0


def ratio_ess(ratio: Float[Tensor, "B T"], use: Bool[Tensor, "B T"]) -> float | None:
    """(sum r)^2 / (n sum r^2) over the tokens in use, in (0, 1]; None without any."""
    r = ratio[use]
    return effective_number(r) / len(r) if len(r) else None


def inner_products(gradients: Sequence[Sequence[Tensor]]) -> Float[Tensor, "K K"]:
    """<g_a, g_b> over all parameters, in float64."""
    size = len(gradients)
    found = torch.zeros(size, size, dtype=torch.float64)
    for parts in zip(*gradients, strict=True):
        flat = [p.double().flatten() for p in parts]
        for a in range(size):
            for b in range(a, size):
                found[a, b] += torch.dot(flat[a], flat[b]).cpu()
    return torch.triu(found) + torch.triu(found, 1).T


def cosines(products: Float[Tensor, "K K"]) -> list[list[float | None]]:
    """cos(g_a, g_b); None where one of them is 0."""
    norms = products.diag().sqrt()
    return [
        [
            float((products[a, b] / (norms[a] * norms[b])).clamp(-1, 1)) if norms[a] > 0 and norms[b] > 0 else None
            for b in range(len(norms))
        ]
        for a in range(len(norms))
    ]


def length_bins(length: Int[Tensor, "B"]) -> list[list[int]]:
    """Non-empty rows by length, shortest first, cut into (up to) ten bins of equally many rows."""
    order = [int(i) for i in torch.argsort(length, stable=True) if length[i] > 0]
    size = min(BINS, len(order))
    cuts = [round(len(order) * i / size) for i in range(size + 1)] if size else []
    return [order[a:b] for a, b in pairwise(cuts)]


def share_by_bin(value: Float[Tensor, "B"], length: Int[Tensor, "B"], bins: Sequence[Sequence[int]]) -> list[float]:
    """Share of a row quantity in each bin; rows of one length count alike, whichever bin their order put them in."""
    lengths, where = torch.unique(length, return_inverse=True)
    total = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, where.cpu(), value.double().cpu())
    mean = (total / torch.bincount(where.cpu()))[where.cpu()]
    whole = float(mean.sum())
    return [float(mean[list(rows)].sum()) / whole if whole > 0 else 0.0 for rows in bins]


def quantiles(x: Tensor, at: Sequence[float]) -> tuple[float, ...]:
    """Linear-interpolated quantiles of a flat tensor."""
    return tuple(float(q) for q in torch.quantile(x.double().cpu(), torch.tensor(at, dtype=torch.float64)))
