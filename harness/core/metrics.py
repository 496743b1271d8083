"""Columns of steps.jsonl: the row's own fields, then the metric dictionary. Data only, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UsageError, near
from harness.core.metric import Metric, When
from harness.core.metric_table import METRICS, QUANTILES

UPDATE_SUFFIXES = ("first", "last", "max")
BY_LENGTH = "ratio/by_length/"  # columns by response length; L, the upper end of a bin, is a power of two


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A field of every row that is no metric."""

    key: str
    unit: str
    doc: str
    integer: bool


ROW_COLUMNS: tuple[Column, ...] = (
    Column(key="schema_version", unit="", doc="version of this layout", integer=True),
    Column(key="step", unit="rollout batches", doc="1 for the first rollout batch", integer=True),
    Column(key="optimizer_steps_cum", unit="count", doc="optimizer steps taken so far", integer=True),
    Column(key="sampled_tokens_cum", unit="tokens", doc="generated so far, discarded ones included", integer=True),
    Column(key="trained_tokens_cum", unit="tokens", doc="tokens of backward passes so far", integer=True),
    Column(key="prompts_cum", unit="count", doc="groups sampled so far", integer=True),
    Column(key="wallclock_s", unit="s", doc="training time so far, over all resumes", integer=False),
    Column(key="budget_fraction", unit="[0, 1]", doc="share of the budget that is spent", integer=False),
    Column(key="lr", unit="1", doc="learning rate of the step's last update", integer=False),
)

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^penalty/[A-Za-z0-9_.-]+/(first|last|max)$", "unweighted value of a penalty of the algorithm, by kind"),
    (r"^reward/component/[A-Za-z0-9_.-]+$", "mean over rows of a named part of the task reward"),
    (
        rf"^{BY_LENGTH}[0-9]+/(rows|full_logsd|geo_logsd|ess_tok)$",
        "contributing rows of L/2 < length <= L tokens at the last update: count, SD of sum_t d_it, SD of mean_t d_it "
        "(ddof 0), token ESS",
    ),
)

BY_KEY: Mapping[str, Metric] = {metric.key: metric for metric in METRICS}


def flat_keys(metric: Metric) -> tuple[str, ...]:
    """The columns of one metric: itself, or with the three update-time suffixes."""
    if metric.when == "update":
        return tuple(f"{metric.key}/{suffix}" for suffix in UPDATE_SUFFIXES)
    return (metric.key,)


METRIC_COLUMNS: tuple[str, ...] = tuple(key for metric in METRICS for key in flat_keys(metric))

WALLCLOCK_COLUMNS: frozenset[str] = frozenset(
    {"wallclock_s", *(metric.key for metric in METRICS if metric.when == "wallclock")}
)
"""Columns that differ between two identical runs; every other column is reproducible."""


def step_keys() -> tuple[str, ...]:
    """All columns of steps.jsonl, in order."""
    return (*(column.key for column in ROW_COLUMNS), *METRIC_COLUMNS)


def describe(key: str) -> Metric:
    """The dictionary entry of a column, with or without its update-time suffix."""
    base, _, suffix = key.rpartition("/")
    found = BY_KEY.get(key) or (BY_KEY.get(base) if suffix in UPDATE_SUFFIXES else None)
    if found is None:
        raise UsageError(f"metric {key!r}", "it is not in the metric dictionary", near(key, METRIC_COLUMNS))
    return found


def is_known(key: str) -> bool:
    """Whether a row may carry this key."""
    return key in _KNOWN or any(re.match(pattern, key) for pattern, _ in PATTERNS)


_KNOWN = frozenset(step_keys())


def make_row(fields: Mapping[str, Any], metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """One row of steps.jsonl: all columns in order, null where nothing was measured; unknown keys are our mistake."""
    unknown = [key for key in (*fields, *metrics) if not is_known(key)]
    assert not unknown, f"columns outside the metric dictionary: {unknown}"
    given: dict[str, Any] = {"schema_version": 1, **fields, **metrics}
    row = {key: given.pop(key, None) for key in step_keys()}
    return row | given


__all__ = [
    "BY_KEY",
    "BY_LENGTH",
    "METRICS",
    "METRIC_COLUMNS",
    "PATTERNS",
    "QUANTILES",
    "ROW_COLUMNS",
    "UPDATE_SUFFIXES",
    "WALLCLOCK_COLUMNS",
    "Column",
    "Metric",
    "When",
    "describe",
    "flat_keys",
    "is_known",
    "make_row",
    "step_keys",
]
