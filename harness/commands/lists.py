"""Lists as they are written on the command line."""

from __future__ import annotations

from harness.core.errors import UsageError


def names(option: str, text: str | None) -> tuple[str, ...] | None:
    """`grpo, gspo` -> their names; None where the option was not given."""
    if text is None:
        return None
    found = tuple(n.strip() for n in text.split(",") if n.strip())
    if not found:
        raise UsageError(f"{option} {text!r}", "it names nothing", "names with commas between them")
    return found


def numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """`8,16` -> whole numbers from 0 on, each once."""
    try:
        found = tuple(int(n) for n in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}", "not a number or a list of numbers", example) from None
    if min(found) < 0 or len(set(found)) < len(found):
        raise UsageError(f"{option} {text}", "these are not different whole numbers from 0 on", example)
    return found


def seeds(option: str, text: str, first: int = 0) -> tuple[int, ...]:
    """`3` -> three seeds from `first` on; `7,8` -> these."""
    example = f"3 or {first},{first + 1},{first + 2}"
    found = numbers(option, text, example)
    if "," in text:
        return found
    if not found[0]:
        raise UsageError(f"{option} {text}", "no seed, no run", example)
    return tuple(range(first, first + found[0]))
