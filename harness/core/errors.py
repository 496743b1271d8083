"""Errors a user can act on: what was received, why it cannot work, what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Base of every error this project raises on purpose; the CLI prints it without a traceback."""

    exit_code = 4


class UsageError(HarnessError):
    """A mistake in what the user asked for, found before anything is run or written (exit code 2)."""

    exit_code = 2

    def __init__(self, what: str, why: str, instead: str) -> None:
        self.what, self.why, self.instead = what, why, instead
        super().__init__(f"{what}\n  why:     {why}\n  instead: {instead}")


class InvalidComparison(HarnessError):
    """The set-up of a comparison is broken, so no ranking may be printed (exit code 3)."""

    exit_code = 3


class InfrastructureError(HarnessError):
    """Memory, disk or an engine failed; the run is resumable and counted as `infra_failed`."""


def near(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known words, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(options)}"
