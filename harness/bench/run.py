"""Runs subjects one at a time, each in a fresh process, round after round: A B C, A B C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness.backends.executors.environment import run_environment
from harness.bench.subjects import Subject
from harness.core.errors import UsageError

TIMEOUT_S = 3600.0
FAILED = "could_not_run"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

Result = dict[str, Any]  # what a worker wrote


def run_rounds(
    subjects: Sequence[Subject],
    rounds: int,
    tell: Callable[[str], None],
    run: Callable[[Subject], Result],
    kept: Path | None = None,
) -> dict[str, list[Result]]:
    """Results by subject, one per round; a subject that cannot run is tried once.

    With `kept` every measurement is appended to that file. What it holds counts, further rounds of a subject included.
    """
    known = [] if kept is None else read_kept(kept)
    found: dict[str, list[Result]] = {
        s.name: [r["result"] for r in known if r["subject"] == s.model_dump(mode="json")] for s in subjects
    }
    took: dict[str, float] = {}
    plan = [s for number in range(rounds) for s in subjects if len(found[s.name]) <= number]
    for number, subject in enumerate(plan):
        if any(FAILED in r for r in found[subject.name]):
            continue
        tell(f"[{number + 1}/{len(plan)}] {subject.name}{time_left(plan[number:], took)}")
        start = time.monotonic()
        result = run(subject)
        took[subject.name] = time.monotonic() - start
        found[subject.name].append(result)
        if kept is not None and FAILED not in result:
            keep(kept, subject, result)
        said = f"could not run: {result[FAILED]}" if FAILED in result else f"{took[subject.name]:.0f} s"
        tell(f"    {said}")
    return found


def read_kept(file: Path) -> list[dict[str, Any]]:
    """What an earlier, interrupted benchmark measured: subject and result per line."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--keep {file}", f"not the results of a benchmark: {error}", "another file, or delete this one"
        ) from None


def keep(file: Path, subject: Subject, result: Result) -> None:
    """Appends one result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"subject": subject.model_dump(mode="json"), "result": result}) + "\n")


def time_left(coming: Sequence[Subject], took: Mapping[str, float]) -> str:
    """From what the subjects took before, those of a kind counting for one another."""
    if not took:
        return ""
    mean = sum(took.values()) / len(took)
    left = sum(took.get(s.name, mean) for s in coming)
    return f", about {left / 60:.0f} min left"


def run_alone(subject: Subject, timeout: float = TIMEOUT_S) -> Result:
    """One subject in a process of its own, with the thread count in its environment before torch is loaded."""
    environment = run_environment(subject.threads, OFFLINE | os.environ, keep_memory=subject.keep_memory)
    with TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        command = [sys.executable, "-m", "harness.bench.worker", str(target)]
        try:
            done = subprocess.run(
                command, input=subject.model_dump_json(), capture_output=True, text=True, timeout=timeout,
                env=environment, cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {FAILED: f"not finished after {timeout / 60:.0f} minutes"}
        if not target.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return {FAILED: f"the process ended with code {done.returncode}: {last}"[:500]}
        return dict(json.loads(target.read_text(encoding="utf-8")))


def medians(results: Sequence[Result]) -> Result:
    """Medians over all measured steps of all rounds; memory and the rest as medians over rounds."""
    failed = next((r for r in results if FAILED in r), None)
    if failed is not None:
        return failed
    steps = [step for r in results for step in r.get("steps", ())]
    found: Result = {key: median(s[key] for s in steps) for key in (steps[0] if steps else ())}
    if steps:
        found["step_s_range"] = [min(s["step_s"] for s in steps), max(s["step_s"] for s in steps)]
        found["num_steps"] = len(steps)
    for key, value in results[0].items():
        if isinstance(value, dict):
            found[key] = {k: median(r[key][k] for r in results) for k in value}
        elif isinstance(value, int | float):
            found[key] = median(r[key] for r in results)
    return found
