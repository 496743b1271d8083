"""`harness gc`: what checkpoints take, what may go, and removing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.study.disk import Survey, chosen, free, human, runs_below, starts, survey


def run_gc(place: Path, keep: str | None, *, dry_run: bool, force: bool, as_json: bool) -> int:
    """Shows and, unless it is a dry run, frees."""
    roles = chosen(keep)
    runs = runs_below(place)
    users = starts(runs)
    found = [survey(run, roles, users, force=force) for run in runs]
    freed = 0 if dry_run else sum(free(s) for s in found if s.total(kept=False))
    if as_json:
        print(json.dumps(_data(found, freed, dry_run=dry_run)))
    else:
        _show(found, freed, dry_run=dry_run)
    return 0


def _data(found: Sequence[Survey], freed: int, *, dry_run: bool) -> dict[str, object]:
    runs = [
        {
            "run": str(s.run),
            "state": s.state,
            "kept_bytes": s.total(kept=True),
            "freed_bytes": s.total(kept=False),
            "items": [
                {"name": i.path.name, "step": i.step, "bytes": i.size, "roles": i.roles, "kept": i.kept, "why": i.why}
                for i in s.items
            ],
        }
        for s in found
    ]
    would = sum(s.total(kept=False) for s in found)
    return {"dry_run": dry_run, "freed_bytes": freed, "would_free_bytes": would, "runs": runs}


def _show(found: Sequence[Survey], freed: int, *, dry_run: bool) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("checkpoint", justify="right")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("why", overflow="fold")
    for s in found:
        name = s.run.name
        if s.state == "running":
            table.add_row(name, "", "", "kept", "a process is writing this run")
        for item in s.items:
            verdict = "kept" if item.kept else "would go" if dry_run else "removed"
            label = "" if item.step is None else str(item.step)
            table.add_row(name, label, human(item.size), verdict, item.why)
            name = ""
    Console().print(table, markup=False)
    kept, gone = (sum(s.total(kept=k) for s in found) for k in (True, False))
    said = f"would free {human(gone)}" if dry_run else f"freed {human(freed)}"
    print(f"{len(found)} run(s): {said}, {human(kept)} stay")
