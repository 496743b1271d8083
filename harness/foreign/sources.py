"""Logs of other trainers as rows: {step, their key -> number}."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError

Row = dict[str, float]


def read_trl(path: Path) -> list[Row]:
    """`trainer_state.json` of TRL (or its folder): log_history, evaluations and training rows of a step together."""
    file = path / "trainer_state.json" if path.is_dir() else path
    data = _json(file)
    history = data.get("log_history") if isinstance(data, dict) else None
    if not isinstance(history, list):
        raise UsageError(f"{file}: no log_history", "a trainer_state.json of TRL holds its log there",
                         "the trainer_state.json of the last checkpoint, or --format verl or csv")  # fmt: skip
    return _merged(file, (entry for entry in history if isinstance(entry, dict)))


def read_verl(path: Path) -> list[Row]:
    """The JSONL of verl's file logger, {"step": n, "data": {...}}, or the same without nesting."""
    lines = _text(path).splitlines()
    rows = []
    for number, line in enumerate((ln for ln in lines if ln.strip()), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines):  # cut off while it was written
                continue
            raise UsageError(f"{path}: line {number} is not JSON", "verl's file logger writes one object per line",
                             "the file of VERL_FILE_LOGGER_PATH, or --format trl or csv") from None  # fmt: skip
        rows.append({**entry.get("data", entry), "step": entry.get("step")} if isinstance(entry, dict) else {})
    return _merged(path, rows)


def read_csv(path: Path) -> list[Row]:
    """A CSV with a column `step` and columns named as in the metric dictionary."""
    return _merged(path, csv.DictReader(_text(path).splitlines()))


READERS: Mapping[str, Callable[[Path], list[Row]]] = {"trl": read_trl, "verl": read_verl, "csv": read_csv}


def _merged(path: Path, entries: Iterator[Any] | list[Any] | csv.DictReader[str]) -> list[Row]:
    """One row per step, in order; what is no number is left out."""
    found: dict[int, Row] = {}
    for entry in entries:
        step = _number(entry.get("step"))
        if step is None or step < 0 or step != int(step):
            raise UsageError(f"{path}: an entry without a whole-number step ({entry.get('step')!r})",
                             "steps order the rows", "add or repair the column `step`")  # fmt: skip
        values = {str(k): v for k, raw in entry.items() if k != "step" and (v := _number(raw)) is not None}
        found.setdefault(int(step), {"step": step}).update(values)
    if not found:
        raise UsageError(f"{path}: no entry", "there is nothing to import", "the log of a run that has begun")
    return [found[step] for step in sorted(found)]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number - number == 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", "it cannot be read as text", "the log file of a run") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})", "TRL writes this file in one piece", "a whole file") from None
