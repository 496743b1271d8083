"""Splits by content: whatever generator or file made an item, equal content lands in the same split."""

from __future__ import annotations

import hashlib

from harness.core.ports import Split

_SPLIT_OF_RESIDUE: tuple[Split, ...] = ("test", "validation", *("train",) * 8)  # 10 %, 10 %, 80 %


def digest(content: str) -> bytes:
    """16 bytes that identify a content: blake2b of its UTF-8 text, the same on every machine."""
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def content_id(content: str) -> str:
    """16 hexadecimal digits that identify a content."""
    return digest(content)[8:].hex()


def split_of_digest(value: bytes) -> Split:
    """The split of a content, given its digest."""
    return _SPLIT_OF_RESIDUE[int.from_bytes(value[:8], "little") % 10]


def split_of(content: str) -> Split:
    """test (10 %), validation (10 %) or train (80 %), from the content's hash alone."""
    return split_of_digest(digest(content))
