"""One controller of a planted search as a process: `python -m tests.fakes.controller URL FOLDER PLAN PAUSE`.

PLAN is a search.json. Says `ready` once the storage is open, goes on at a line of input, and ends with the number of
runs it executed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.core.search import SearchRecord
from harness.study import trials
from harness.study.tune import Search, run_trials
from tests.fakes.planted import PlantedExecutor
from tests.study.surfaces import SURFACE

HEARTBEAT_S, GRACE_S = 1, 3


def main(url: str, folder: str, plan: str, pause_s: str) -> None:
    """Asks, runs and tells until the search is over."""
    trials.HEARTBEAT_S, trials.GRACE_S = HEARTBEAT_S, GRACE_S
    record = SearchRecord.model_validate_json(Path(plan).read_text())
    executor = PlantedExecutor(surface=SURFACE, parallel=2)
    with trials.controller(url):
        search = Search(url, Path(folder), record, record.searched[0])
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        run_trials(search, executor, 2, lambda s, states: None, pause_s=float(pause_s))
    sys.stdout.write(f"{len(executor.attempts)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
