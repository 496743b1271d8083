"""The command line: `harness VERB`.

Exit codes: 0 done, 2 usage, 3 comparison invalid, 4 some runs failed, 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from harness.cli import evidence, machine, results, scores, searches, studies
from harness.cli.app import app
from harness.core.errors import HarnessError

__all__ = ["app", "evidence", "guarded", "machine", "main", "results", "scores", "searches", "studies"]


_ORDER = tuple(m.__name__ for m in (studies, searches, results, scores, machine, evidence))  # of --help
app.registered_commands.sort(key=lambda command: _ORDER.index(getattr(command.callback, "__module__", "")))


def guarded(run: Callable[[], object]) -> int:
    """Turns our errors into one message and an exit code."""
    try:
        run()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def said_once() -> None:
    """Python's warnings as one line each, without the place in our code that raised them."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            print(f"warning: {message}", file=sys.stderr)
        said.add(str(message))

    warnings.showwarning = show


def main() -> None:
    """Entry point."""
    said_once()
    sys.exit(guarded(lambda: app()))
