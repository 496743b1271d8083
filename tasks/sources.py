"""Where the rows of a data task come from: JSONL, Parquet, or a Hugging Face dataset."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UsageError

FORMATS = (".jsonl", ".parquet")
HUB = "hf:"
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Numbered records under the name that error messages use."""

    label: str  # a path, or dataset and split
    unit: str  # "line" or "row"
    sha256: str  # of the content
    content: bytes = b""  # of a JSONL file
    rows: tuple[Record, ...] = ()  # of everything else

    def at(self, number: int) -> str:
        """`file.jsonl, line 3`."""
        return f"{self.label}, {self.unit} {number}"

    def both(self, first: int, second: int) -> str:
        """`file.jsonl, lines 3 and 7`."""
        return f"{self.label}, {self.unit}s {first} and {second}"

    def records(self) -> Iterator[tuple[int, Record]]:
        """(number, record) of every row; blank lines are passed over."""
        return enumerate(self.rows, start=1) if self.unit == "row" else _lines(self)

    def __str__(self) -> str:
        return self.label


def from_file(given: str) -> Source:
    """A `.jsonl` or `.parquet` file; UsageError where it is none of them or cannot be read."""
    path = Path(given).expanduser()
    content = _bytes_of(path, given)
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix == ".parquet":
        return Source(label=str(path), unit="row", sha256=sha256, rows=_parquet(path))
    if path.suffix != ".jsonl":
        raise UsageError(
            f"data file {given}", "neither JSONL nor Parquet", f"a file that ends in {' or '.join(FORMATS)}"
        )
    return Source(label=str(path), unit="line", sha256=sha256, content=content)


def from_hub(name: str, *, config: str | None, split: str, revision: str | None) -> Source:
    """A split of a Hugging Face dataset by id, or of a local folder that `datasets` can load."""
    label = f"{HUB}{name} ({split})"
    try:
        import datasets
    except ImportError:
        raise UsageError(label, "the package datasets is not installed", "pip install '.[eval]'") from None
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # a dozen exception types, from the network to the file format
        words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        raise UsageError(
            label,
            f"it cannot be loaded ({words}){'; HF_HUB_OFFLINE is set' if offline else ''}",
            "another id, config or split, or its rows as a .jsonl or .parquet file",
        ) from None
    rows = tuple(dict(row) for row in table)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return Source(label=label, unit="row", sha256=digest.hexdigest(), rows=rows)


def _bytes_of(path: Path, given: str) -> bytes:
    if path.is_dir():
        raise UsageError(f"task file {given}", "this is a folder", "a .jsonl or .parquet file in it")
    if not path.exists():
        beside = [p.name for f in FORMATS for p in path.parent.glob(f"*{f}")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.3) or sorted(beside)[:5]
        where = f"in {path.parent}: {', '.join(close)}" if close else "the path of an existing file"
        raise UsageError(f"task file {given}", "no such file", where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"task file {given}", f"it cannot be read: {error.strerror}", "a readable file") from None


def _parquet(path: Path) -> tuple[Record, ...]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"task file {path}", "Parquet needs pyarrow", "pip install pyarrow") from None
    try:
        return tuple(parquet.read_table(path).to_pylist())
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"task file {path}", f"not a readable Parquet file: {reason}", "a valid one") from None


def _lines(source: Source) -> Iterator[tuple[int, Record]]:
    for number, raw in enumerate(source.content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = source.at(number)
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(
                where, f"not UTF-8 (byte {error.start + 1} of the line is 0x{raw[error.start]:02x})", "save it as UTF-8"
            ) from None
        if not text:
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"{where}: {text[:60]!r}", f"not JSON ({error})", "one JSON object per line") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UsageError(
                f"{where}: {text[:60]!r}",
                f"a JSON {kind}, not an object",
                'an object, e.g. {"question": ..., "answer": ...}',
            )
        yield number, record
