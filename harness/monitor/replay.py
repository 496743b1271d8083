"""The same detectors over what has been written: a run folder, or curves in CSV files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError, near
from harness.core.metrics import BY_KEY, METRIC_COLUMNS, UPDATE_SUFFIXES, is_known
from harness.core.results import EventRecord, RunFolder
from harness.monitor.scores import Evaluation, of_record
from harness.monitor.watch import Monitor, close, update

SCORE = re.compile(r"^eval/(?:.+/)?(?:avg_at_\d+|score)$")  # held-out score, e.g. eval/chain/validation/avg_at_1
UNKNOWN = 5  # misspelt columns that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What the detectors make of a curve."""

    state: Monitor
    notes: tuple[str, ...]  # what was wrong with the input

    @property
    def events(self) -> tuple[EventRecord, ...]:
        """Every event, in the order of confirmation."""
        return self.state.events


def replay(rows: Iterable[tuple[Mapping[str, Any], Sequence[Evaluation]]], start: Monitor) -> Monitor:
    """The fold over rows, each with the evaluations made at its step."""
    state = start
    for row, evaluations in rows:
        state = update(state, row, evaluations).state
    return close(state)


def replay_run(run: RunFolder, start: Monitor | None = None) -> Monitor:
    """The detectors over a run folder, in the order in which the run itself fed them; `start` holds what it knew."""
    at: dict[int, list[Evaluation]] = {}
    begin = run.steps[0]["step"] if run.steps else 0
    for record in run.evals:
        at.setdefault(record.step if record.step >= begin else -1, []).append(of_record(record))
    state = update(start or Monitor(), None, at.pop(-1, ())).state
    for row in run.steps:
        state = update(state, row, at.pop(row["step"], ())).state
    return close(state)


def replay_csv(path: Path) -> Replayed:
    """A CSV file with a `step` column and metrics named as in the dictionary; an empty cell is not measured.

    T is what the file spans. Whatever cannot be read is left out and noted; a file without any step is an error.
    """
    rows, notes = read_csv(path)
    steps = [row["step"] for row in rows if isinstance(row.get("step"), float) and math.isfinite(row["step"])]
    if not steps:
        raise UsageError(
            f"{path.name}: no row with a number in a column `step`",
            "rules count steps, and nothing says where these values belong",
            "a header line with `step` and metric names such as reward/mean, one row per rollout step",
        )
    span = round(max(steps) - min(steps)) + 1
    scores = [key for key in rows[0] if SCORE.match(key)]
    state = replay(((row, _scores(row, scores)) for row in rows), Monitor(horizon=span))
    return Replayed(state=state, notes=(*notes, *state.notes))


def read_csv(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of numbers, NaN and infinities included, by step; and what was wrong with the file."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"{path.name}", f"it cannot be read: {error.strerror}", "a readable CSV file") from None
    lines = csv.reader(text.replace("\0", "").splitlines())
    header = [name.strip() for name in next(lines, [])]
    notes = [*_unknown(header)]
    rows = []
    wrong = 0
    for cells in lines:
        row: dict[str, Any] = {name: None for name in header if _known(name)}
        wrong += len(cells) > len(header)
        for name, cell in zip(header, cells, strict=False):
            if name in row and cell.strip():
                try:
                    row[name] = float(cell)
                except ValueError:
                    wrong += 1
        if any(value is not None for value in row.values()):
            rows.append(row)
    if wrong:
        notes.append(f"{wrong} cells are not numbers or stand in no column, and were left out")
    ordered = sorted(rows, key=_place)
    return ordered, notes if ordered == rows else [*notes, "rows were not in the order of their steps"]


def _place(row: Mapping[str, Any]) -> float:
    step = row.get("step")
    return math.inf if step is None or math.isnan(step) else float(step)


def _scores(row: Mapping[str, Any], keys: Sequence[str]) -> list[Evaluation]:
    step = row.get("step")
    if not isinstance(step, float) or not math.isfinite(step):
        return []
    found = {key: row[key] for key in keys if row[key] is not None and math.isfinite(row[key])}
    return [Evaluation(step=int(step), split=key, score=value) for key, value in found.items()]


def _known(name: str) -> bool:
    return is_known(name) or name in BY_KEY or name.startswith("eval/")


def _unknown(header: Sequence[str]) -> Iterator[str]:
    strange = [name for name in header if name and not _known(name)]
    for name in strange[:UNKNOWN]:
        hint = near(name, _NAMES)
        yield f"column {name} is no metric and was left out" + (f"; {hint}" if hint.startswith("did") else "")
    if len(strange) > UNKNOWN:
        yield f"{len(strange) - UNKNOWN} more columns are no metrics and were left out"
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        yield f"columns named more than once, of which the last counts: {', '.join(twice)}"


_NAMES = sorted({key.rpartition("/")[0] if key.endswith(UPDATE_SUFFIXES) else key for key in METRIC_COLUMNS})
