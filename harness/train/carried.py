"""Carried-over groups as tensors and plain data and back, for checkpoints: exact, and without pickles.

Tokens go into tensors, one after the other, everything else into JSON (Python's, which has NaN). The prompts' answers
are not kept: the groups are graded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from typing import Any

import torch

from harness.core.shapes import Tensor
from harness.core.types import Credit, Grade, Prompt, RolloutGroup, Trajectory

DTYPES = {
    "prompt_ids": torch.int64,
    "response_ids": torch.int64,
    "loss_mask": torch.bool,
    "logp": torch.float64,
    "entropy": torch.float64,
}
ROUTES = "routes"  # of a mixture of experts: [tokens, layers, k], one row's after the other


def pack(groups: Sequence[RolloutGroup]) -> tuple[dict[str, Tensor], str]:
    """Tensors and JSON that `unpack` turns into the groups again."""
    rows = [t for g in groups for t in g.trajectories]
    tensors = {
        name: torch.tensor([x for t in rows for x in (getattr(t, name) or ())], dtype=dtype)
        for name, dtype in DTYPES.items()
    }
    routes = [t.routes for t in rows if t.routes is not None]
    if routes:
        tensors[ROUTES] = torch.cat(routes)
    data = [{"prompt": _prompt(g.prompt), "rows": [_row(t) for t in g.trajectories]} for g in groups]
    return tensors, json.dumps(data, ensure_ascii=False)


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return asdict(replace(prompt, answer=None))


def _row(row: Trajectory) -> dict[str, Any]:
    plain = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("prompt", "grade", ROUTES, *DTYPES)}
    sizes = {name: None if getattr(row, name) is None else len(getattr(row, name)) for name in DTYPES}
    if row.routes is not None:
        plain["routed"] = len(row.routes)
    return {"sizes": sizes, "grade": asdict(row.grade), **plain}


def unpack(tensors: Mapping[str, Tensor], text: str) -> tuple[RolloutGroup, ...]:
    """The groups; their prompts have no answer."""
    streams = {name: iter(tensors[name].tolist()) for name in DTYPES}
    if ROUTES in tensors:
        streams[ROUTES] = iter(tensors[ROUTES])
    found = []
    for group in json.loads(text):
        prompt = Prompt(**{**group["prompt"], "messages": tuple(group["prompt"]["messages"])})
        rows = tuple(_trajectory(prompt, data, streams) for data in group["rows"])
        found.append(RolloutGroup(prompt=prompt, trajectories=rows))
    return tuple(found)


def _trajectory(prompt: Prompt, data: dict[str, Any], streams: Mapping[str, Iterator[Any]]) -> Trajectory:
    sizes, grade = data.pop("sizes"), data.pop("grade")
    for name, size in sizes.items():
        data[name] = None if size is None else tuple(islice(streams[name], size))
    if "routed" in data:
        data[ROUTES] = torch.stack([*islice(streams[ROUTES], data.pop("routed"))])
    for name in ("segments", "credit", "turns"):
        data[name] = tuple((first, second) for first, second in data[name])
    credit = tuple(Credit(**{**c, "span": tuple(c["span"])}) for c in grade["credit"])
    return Trajectory(prompt=prompt, grade=Grade(**{**grade, "credit": credit}), **data)
