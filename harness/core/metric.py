"""One entry of the metric dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

When = Literal["rollout", "update", "counter", "wallclock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One entry of the dictionary."""

    key: str  # name in steps.jsonl and in MLflow, without the update-time suffix
    formula: str
    unit: str
    aggregation: str  # tok, seq, grp, or how the values of a step are combined
    when: When  # rollout: once per row; update: /first /last /max; counter: count of this step; wallclock: timing
    not_applicable: str = ""  # why the value can be null; empty where it never is, bar an empty batch
    trl: str | None = None
    verl: str | None = None
    openrlhf: str | None = None
    prime_rl: str | None = None
    doc: str = ""  # why it is kept, and its trap
