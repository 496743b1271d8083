"""Measures one subject in a fresh process: `python -m harness.bench.worker RESULT`, the subject as JSON on stdin."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.bench.subjects import Subject
from harness.core.errors import UsageError


def measured(subject: Subject) -> dict[str, Any]:
    """The subject's numbers."""
    if subject.who == "loss":
        from harness.bench.loss import loss_cost

        return loss_cost(subject.threads)
    if subject.who == "trl":
        from harness.bench.theirs import measure_trl

        return measure_trl(subject)
    from harness.bench.ours import measure_ours

    return measure_ours(subject)


def reason(error: BaseException) -> str:
    """One line that says why."""
    if isinstance(error, UsageError):
        return f"{error.what}: {error.why}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


def main() -> int:
    """Writes `{"could_not_run": reason}` where the subject cannot be measured; the traceback goes to stderr."""
    target = Path(sys.argv[1])
    subject = Subject.model_validate_json(sys.stdin.read())
    try:
        found = measured(subject)
    except Exception as error:
        traceback.print_exc()
        found = {"could_not_run": reason(error)}
    target.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
