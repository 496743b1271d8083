"""Rows as columns: a large study has a million steps and as many questions, of which a report needs a tenth."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import msgspec


LONGEST_ROW = 1 << 17  # bytes; a row has some ten thousand


class StepColumns(Sequence[dict[str, Any]]):
    """Rows of steps.jsonl of which some columns were kept; a row is made when it is asked for, None where null."""

    def __init__(self, columns: Mapping[str, array[float]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["step"])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {key: _value(key, values[index]) for key, values in self._columns.items()}

    def keys(self) -> tuple[str, ...]:
        """The columns that were kept."""
        return tuple(self._columns)

    def column(self, key: str) -> list[float | None]:
        """One column; KeyError where it was not kept."""
        return [None if v != v else v for v in self._columns[key]]


def _value(key: str, number: float) -> float | int | None:
    if number != number:
        return None
    return int(number) if key == "step" or key.endswith("_cum") else number


@lru_cache(maxsize=8)
def _decoder(keys: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    import msgspec  # only reports need it

    fields: list[Any] = [("step", int), ("schema_version", int, 1)]
    names = {f"c{i}": key for i, key in enumerate(keys) if key != "step"}
    fields += [(name, float | None, None) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=names))


def read_columns(path: Path, keys: Sequence[str], version: int) -> StepColumns | None:
    """Some columns of a steps.jsonl; None where a row is not as the schema has it, so that a slower reader must say."""
    import msgspec

    decoder, rows = _decoder(tuple(keys)), []
    if path.exists():
        try:
            rows = [msgspec.structs.astuple(decoder.decode(ln)) for ln in path.read_bytes().split(b"\n") if ln.strip()]
        except msgspec.MsgspecError:
            return None
    if any(row[1] != version for row in rows):
        return None
    return StepColumns(_columns([(row[0], *row[2:]) for row in rows], ["step", *(k for k in keys if k != "step")]))


def open_keys(path: Path, prefixes: tuple[str, ...]) -> list[str]:
    """Columns of the open families, whose names the run decides, in the first and the last whole row of a file."""
    import msgspec

    found: dict[str, None] = {}
    if not path.exists():
        return []
    with path.open("rb") as file:
        first = file.readline()
        file.seek(max(file.tell(), path.stat().st_size - LONGEST_ROW))
        tail = [line for line in file.read().split(b"\n") if line.strip()]
    for line in (first, *reversed(tail)):
        try:
            row = msgspec.json.decode(line)
        except msgspec.MsgspecError:
            continue  # torn, or the end of a row; the reader of the rows says so where it matters
        found |= dict.fromkeys(key for key in row if key.startswith(prefixes)) if isinstance(row, dict) else {}
        if line is not first:
            break
    return list(found)


def _columns(rows: Sequence[Sequence[float | None]], keys: Sequence[str]) -> dict[str, array[float]]:
    turned = list(zip(*rows, strict=True)) if rows else [()] * len(keys)
    return {
        key: array("d", (nan if v is None else v for v in values)) for key, values in zip(keys, turned, strict=True)
    }


def columns_of(rows: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> StepColumns:
    """The same from rows that were read one by one; what is no number is null."""
    names = ["step", *(k for k in keys if k != "step")]
    return StepColumns(_columns([[_number(row.get(k)) for k in names] for row in rows], names))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of an evaluation as columns: ids, samples drawn, of which correct."""

    ids: tuple[str, ...]
    n: array[int]
    correct: array[int]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, int]]) -> Questions:
        """From (id, n, correct)."""
        ids, n, correct = tuple(zip(*rows, strict=True)) or ((), (), ())
        return cls(_shared(ids), array("q", n), array("q", correct))

    def __len__(self) -> int:
        return len(self.ids)


@lru_cache(maxsize=64)
def _shared(ids: tuple[str, ...]) -> tuple[str, ...]:
    """One copy of ids that many evaluations have in common."""
    return ids
