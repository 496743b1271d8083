"""Small numeric helpers: quantiles, safe exponentials, and the way from tensors to a row of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from harness.core.shapes import Float, Tensor

Value = Tensor | float | int | bool | None
Row = dict[str, float | None]

_EXP_LIMIT = 700.0  # e^700 is the largest power of ten that float64 holds with room to spare


def exp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """e^x that stays finite, so that an exploded ratio is a large number and not a missing one."""
    return x.clamp(max=_EXP_LIMIT).exp()


def k3(u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """e^u - 1 - u >= 0, per element; samples from p and u = log q/p estimate KL(p || q) in nats."""
    return torch.expm1(u.clamp(max=_EXP_LIMIT)) - u


def quantiles(ordered: Float[Tensor, "N"], shares: Sequence[float]) -> list[Tensor]:
    """Quantiles of a sorted vector, linear between the order statistics; `torch.quantile` refuses 2^24 elements."""
    last = ordered.numel() - 1
    places = [share * last for share in shares]
    low = [int(place) for place in places]
    picked = ordered[torch.tensor([*low, *(min(i + 1, last) for i in low)], device=ordered.device)]
    below, above = picked.chunk(2)
    weight = torch.tensor([p - i for p, i in zip(places, low, strict=True)], dtype=below.dtype, device=below.device)
    return list((below + (above - below) * weight).unbind())


def numbers(values: Mapping[str, Value]) -> Row:
    """One transfer from the device for all tensors; what is not finite becomes None."""
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    moved: list[float] = []
    if tensors:
        device = next((t.device for t in tensors.values() if t.device.type != "cpu"), torch.device("cpu"))
        moved = torch.stack([t.to(device, torch.float64) for t in tensors.values()]).tolist()
    got: dict[str, Value] = {**values, **dict(zip(tensors, moved, strict=True))}
    return {key: _finite(value) for key, value in got.items()}


def _finite(value: Value) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
