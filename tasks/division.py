"""Rows -> train, validation and test by the hash of their content; no question in two of them."""

from __future__ import annotations

from collections.abc import Mapping

from harness.core.errors import UsageError
from harness.core.ports import Split
from harness.core.types import Message, Prompt
from tasks.rows import Row
from tasks.sources import Source
from tasks.splits import digest, split_of_digest

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def divided(source: Source, rows: list[Row], test: Source | None, held_out: list[Row]) -> dict[Split, list[Prompt]]:
    """The items of each split in the order of their hash; `held_out` are the rows of a test source of its own.

    UsageError for too few rows, and for a question that would be in two splits.
    """
    items = _two_sources(source, rows, test, held_out) if test is not None else _one_source(source, rows)
    _check_overlap(source, rows, test, held_out, items)
    return items


def _one_source(source: Source, rows: list[Row]) -> dict[Split, list[Prompt]]:
    if len(rows) < len(_SPLITS):
        raise UsageError(
            f"task file {source}: {len(rows)} different questions",
            "too few rows for three disjoint splits (train, validation, test)",
            "at least 3 questions; 100 or more for scores worth reading",
        )
    ordered = _ordered(rows)
    items: dict[Split, list[Prompt]] = {split: [] for split in _SPLITS}
    for key, row in ordered:
        items[split_of_digest(key)].append(_prompt(row))
    if not all(items.values()):
        prompts, tenth = [_prompt(row) for _, row in ordered], max(1, len(ordered) // 10)
        items = {"test": prompts[:tenth], "validation": prompts[tenth : 2 * tenth], "train": prompts[2 * tenth :]}
    return items


def _two_sources(source: Source, rows: list[Row], test: Source, held_out: list[Row]) -> dict[Split, list[Prompt]]:
    """The rows as train and validation, those of the other source as test."""
    if len(rows) < 2:
        raise UsageError(
            f"task file {source}: {len(rows)} different questions", "train and validation need some each", "2 or more"
        )
    ordered = _ordered(rows)
    validation = [_prompt(row) for key, row in ordered if split_of_digest(key) == "validation"]
    train = [_prompt(row) for key, row in ordered if split_of_digest(key) != "validation"]
    if not validation or not train:
        train, validation = [_prompt(row) for _, row in ordered[1:]], [_prompt(ordered[0][1])]
    return {"train": train, "validation": validation, "test": [_prompt(row) for _, row in _ordered(held_out)]}


def _ordered(rows: list[Row]) -> list[tuple[bytes, Row]]:
    return sorted(((digest(row.content), row) for row in rows), key=lambda pair: pair[0])


def _check_overlap(
    source: Source, rows: list[Row], test: Source | None, held_out: list[Row], items: Mapping[Split, list[Prompt]]
) -> None:
    """Refuses questions that stand in two splits but for case, spaces and punctuation at the ends."""
    trained = {p.messages[-1]["content"]: split for split in _SPLITS for p in items[split]
               if test is None or split != "test"}  # fmt: skip
    seen: dict[bytes, tuple[Split, str, str]] = {}
    for origin, found, apart in ((source, rows, False), (test, held_out, True)):
        for row in found:
            assert origin is not None
            split: Split = "test" if apart else trained[row.content]
            key = digest(" ".join(row.content.casefold().split()).strip(" .?!"))
            first = seen.setdefault(key, (split, origin.at(row.line), row.content))
            if first[0] != split:
                raise UsageError(
                    f"{origin.at(row.line)} and {first[1]}: {row.content[:60]!r}",
                    f"the same question would be in {first[0]} and in {split}, so its score would be learnt by heart",
                    "remove one of the rows",
                )


def _prompt(row: Row) -> Prompt:
    message: Message = {"role": "user", "content": row.content}
    return Prompt(id=row.id, messages=(message,), answer=row.answer, difficulty=row.difficulty)
