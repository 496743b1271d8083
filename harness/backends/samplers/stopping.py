"""Stop strings: where the text of a growing response first contains one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from harness.core.errors import UsageError

UNFINISHED = "\ufffd"  # what an incomplete character decodes to


class StopStrings:
    """Decodes a response only after a token that can end a stop string, and once when it is over.

    A stop string can only become complete with a token whose own text holds the string's last character, or a part of
    a character; a final space may come from the joining of tokens, so such a string is looked for at every token.
    """

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        if "" in stop:
            raise UsageError(
                "an empty stop string", "every text contains it, so each response would end at once", "none"
            )
        self._stop, self._decode = tuple(stop), decode
        self._ends = frozenset(s[-1] for s in stop) | {UNFINISHED}
        self._may_end = lru_cache(maxsize=None)(self._token_may_end)

    def __bool__(self) -> bool:
        return bool(self._stop)

    def end(self, ids: Sequence[int], known: int, over: bool) -> int | None:
        """Length of the first prefix of `ids`, longer than `known`, whose text contains a stop string.

        `over`: no token will follow; the whole text is read once more, in case a tokenizer joins texts in its own way.
        """
        for length in range(known + 1, len(ids) + 1):
            if self._may_end(ids[length - 1]) and self._found(ids[:length]):
                return length
        if over and self._found(ids):
            return next(length for length in range(1, len(ids) + 1) if self._found(ids[:length]))
        return None

    def _token_may_end(self, token: int) -> bool:
        return " " in self._ends or not self._ends.isdisjoint(self._decode((token,)))

    def _found(self, ids: Sequence[int]) -> bool:
        text = self._decode(ids)
        return any(s in text for s in self._stop)
