"""Stop strings looked for as a response grows, against decoding every prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.backends.samplers.stopping import StopStrings

BYTES = (*tuple(bytes([b]) for b in "aé🙂\n. #".encode()), b"ab", b"\n\n", b"b#", b"", b" a", "é🙂".encode(), b"ba ")
WORDS = ("a", "b", "ab", "#", "é", "", "a#", "\n")


def decode_bytes(ids: Sequence[int]) -> str:
    """Like a byte-level tokenizer: characters may be spread over tokens."""
    return b"".join(BYTES[i] for i in ids).decode(errors="replace")


def decode_words(ids: Sequence[int]) -> str:
    """Like a word-level one: blanks come from the joining."""
    return " ".join(WORDS[i] for i in ids if WORDS[i])


def decode_pieces(ids: Sequence[int]) -> str:
    """Like a sentence-piece one: blanks belong to the words and the first is stripped."""
    return "".join(f" {WORDS[i]}" for i in ids if WORDS[i])[1:]


DECODERS = {"bytes": (decode_bytes, len(BYTES)), "words": (decode_words, 8), "pieces": (decode_pieces, 8)}


def first_end(ids: Sequence[int], stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> int | None:
    return next((n for n in range(1, len(ids) + 1) if any(s in decode(ids[:n]) for s in stop)), None)


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
def test_the_first_prefix_with_a_stop_string_is_found(kind: str, data: st.DataObject) -> None:
    """Whatever the number of tokens between two looks."""
    decode, size = DECODERS[kind]
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    text = st.text(st.sampled_from("aéb🙂\n. #"), min_size=1, max_size=3)
    stop = data.draw(st.lists(text, min_size=1, max_size=3))
    step = data.draw(st.integers(1, 7))
    search = StopStrings(stop, decode)
    found = None
    for known in range(0, len(ids), step):
        seen = ids[: known + step]
        found = search.end(seen, known, over=len(seen) == len(ids))
        if found is not None:
            break
    assert found == first_end(ids, stop, decode)


def test_few_tokens_need_decoding() -> None:
    calls = []

    def decode(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return decode_words(ids)

    search = StopStrings(("#",), decode)
    ids = [0, 1, 2, 1, 0] * 20
    assert all(search.end(ids[:n], n - 1, over=n == len(ids)) is None for n in range(1, len(ids) + 1))
    assert sorted(calls) == [1, 1, 1, len(ids)], "each kind of token once, and the whole text at the end"


def test_a_tokenizer_that_rewrites_earlier_text_is_caught_at_the_end() -> None:
    def decode(ids: Sequence[int]) -> str:
        return decode_words(ids).replace("a b", "!")

    assert StopStrings(("!",), decode).end([3, 0, 1, 2], 3, over=True) == 3
