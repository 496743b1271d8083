"""Live progress of a study, read from its run folders: one line per running run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.core.errors import HarnessError
from harness.core.ports import RunState
from harness.core.results import EVENTS, RESULT, STEPS, VALIDITY, read_lines
from harness.study.compare import PlannedRun

SERIOUS = ("FATAL", "COLLAPSE", "DEGRADED")
OPTIONAL = (("setup", "yellow"), ("events", "red"))  # columns that appear when there is something to say
PLAIN_EVERY_S = 20.0
TAIL_BYTES = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Where one running run stands."""

    arm: str
    seed: int
    step: int | None
    fraction: float
    reward: float | None
    tokens_per_s: float | None
    eta_s: float | None
    setup: str  # "", or level and checks of the set-up that are not PASS
    events: str  # active ones, the worst first, e.g. `reward_collapse 57`; empty where there is none


def tail_row(path: Path) -> dict[str, Any] | None:
    """The last complete row of a steps.jsonl, without reading the rest."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        return row if isinstance(row, dict) else None
    return None


def line_of(run: PlannedRun) -> Line:
    """Reads a run's progress."""
    row = tail_row(run.folder / STEPS)
    fraction = row["budget_fraction"] if row else 0.0
    return Line(
        arm=run.spec.arm,
        seed=run.spec.seed,
        step=row["step"] if row else None,
        fraction=fraction,
        reward=row.get("reward/mean") if row else None,
        tokens_per_s=row.get("perf/tok_per_s_e2e") if row else None,
        eta_s=row["wallclock_s"] * (1 - fraction) / fraction if row and fraction > 0 else None,
        setup=setup_of(run.folder),
        events=events_of(run.folder),
    )


def setup_of(folder: Path) -> str:
    """`INVALID verifier, ends`: the worst level of a run's findings so far, and the checks that have it."""
    try:
        record = json.loads((folder / VALIDITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    level = record["validity"]
    checks = dict.fromkeys(f["check"] for f in record["findings"] if f["level"] == level)
    return "" if level == "PASS" else f"{level} {', '.join(checks)}"


def events_of(folder: Path, shown: int = 2) -> str:
    """The active events of a run with their onsets, warnings left out."""
    try:
        rows = [r for r in read_lines(folder / EVENTS) if r.get("clear_step") is None and r.get("severity") in SERIOUS]
    except HarnessError:  # another program wrote the file; the run itself tells
        return ""
    rows.sort(key=lambda r: (SERIOUS.index(r["severity"]), r["onset_step"]))
    told = [f"{r['type']} {r['onset_step']}" for r in rows[:shown]]
    return ", ".join([*told, *([f"+{len(rows) - shown}"] if len(rows) > shown else [])])


def ending(folder: Path) -> str:
    """How a run ended, where that was not the plain end of its budget, with its events."""
    try:
        status = json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return ""
    events = events_of(folder)
    return "" if status == "completed" and not events else f": {status}" + (f" ({events})" if events else "")


def duration(seconds: float | None) -> str:
    """`75` -> `1:15`."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveView:
    """Draws the running runs on a terminal; elsewhere prints a line now and then and at every end."""

    def __init__(self, planned: list[PlannedRun], parallel: int, *, quiet: bool = False) -> None:
        self._planned = {r.spec.run_id: r for r in planned}
        self._already = sum(r.done for r in planned)
        self._parallel, self._quiet = parallel, quiet
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._start = time.monotonic()
        self._told: dict[str, RunState] = {}
        self._setups: dict[str, str] = {}
        self._printed = 0.0

    def __enter__(self) -> LiveView:
        if self._live is not None and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None and not self._quiet:
            self._live.stop()

    def __call__(self, states: Mapping[str, RunState]) -> None:
        if self._quiet:
            return
        running = [line_of(self._planned[i]) for i, s in states.items() if s == "running"]
        head = self._headline(states, running)
        if self._live is not None:
            self._live.update(_table(head, running), refresh=True)
            return
        for run_id, state in states.items():
            self._tell_setup(run_id)
            if self._told.get(run_id) != state and state in ("done", "failed"):
                run = self._planned[run_id]
                words = f"{state:6} {run.spec.arm}, seed {run.spec.seed}{ending(run.folder)}"
                print(words, file=sys.stderr, flush=True)
        self._told = dict(states)
        if time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            lines = [
                f"{r.arm} s{r.seed} {r.fraction:.0%} reward {_number(r.reward)} {r.events}".strip() for r in running
            ]
            print(f"{head} | " + " | ".join(lines), file=sys.stderr, flush=True)

    def _tell_setup(self, run_id: str) -> None:
        """A line when a run's set-up turns out to be worse than known."""
        run = self._planned[run_id]
        found = setup_of(run.folder)
        if found and self._setups.get(run_id) != found:
            self._setups[run_id] = found
            print(f"set-up {run.spec.arm}, seed {run.spec.seed}: {found}", file=sys.stderr, flush=True)

    def _headline(self, states: Mapping[str, RunState], running: list[Line]) -> str:
        ended = self._already + sum(s in ("done", "failed") for s in states.values())
        worked = ended - self._already + sum(r.fraction for r in running)
        left = len(self._planned) - ended - sum(r.fraction for r in running)
        elapsed = time.monotonic() - self._start
        eta = duration(elapsed / worked * left) if worked > 0.3 else "-"
        return f"{ended}/{len(self._planned)} runs, {duration(elapsed)} elapsed, ETA {eta}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _table(head: str, lines: list[Line]) -> Table:
    table = Table(title=head, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True, overflow="ellipsis", max_width=28)
    for name in ("seed", "done", "step", "reward", "tok/s", "ETA"):
        table.add_column(name, justify="right", no_wrap=True)
    optional = [(name, style) for name, style in OPTIONAL if any(getattr(r, name) for r in lines)]
    for name, style in optional:
        table.add_column(name.replace("setup", "set-up"), no_wrap=True, overflow="ellipsis", style=style)
    for r in lines:
        step = "starting" if r.step is None else str(r.step)
        rate = _number(r.tokens_per_s, ",.0f")
        cells = [r.arm, str(r.seed), f"{r.fraction:.0%}", step, _number(r.reward), rate, duration(r.eta_s)]
        table.add_row(*cells, *(getattr(r, name) for name, _ in optional))
    return table
