"""`harness import`."""

from __future__ import annotations

import json

from harness.core.errors import UsageError
from harness.foreign.sources import READERS
from harness.foreign.write import Wanted, import_run


def run_import(wanted: Wanted, *, as_json: bool) -> int:
    """Writes the run folder and says what was taken and what was not."""
    if wanted.library not in READERS:
        raise UsageError(f"--format {wanted.library}", "no reader for it", f"one of: {', '.join(READERS)}")
    for name, value in (("--responses", wanted.responses), ("--updates", wanted.updates)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}", "at least one is sampled or made per step", f"e.g. {name} 1")
    found = import_run(wanted)
    if as_json:
        print(json.dumps({"run": str(found.folder), "steps": found.steps, "evaluations": found.evaluations,
                          "taken": dict(found.taken), "left": dict(found.left)}))  # fmt: skip
        return 0
    print(f"run     {found.folder}: {found.steps} steps, {found.evaluations} evaluations")
    for theirs, ours in found.taken.items():
        print(f"taken   {theirs} as {ours}")
    for theirs, why in found.left.items():
        print(f"left    {theirs}: {why}")
    if not found.evaluations:
        print("no held-out score: name its key with --score, or the run is listed and enters no comparison")
    print(f"report  harness report {wanted.study}")
    return 0
