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

from harness.bench.subjects import Subject

TIMEOUT_S = 3600.0
FAILED = "could_not_run"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

Result = dict[str, Any]  # what a worker wrote


def run_rounds(
    subjects: Sequence[Subject], rounds: int, tell: Callable[[str], None], run: Callable[[Subject], Result]
) -> dict[str, list[Result]]:
    """Results by subject, one per round; a subject that cannot run is tried once."""
    found: dict[str, list[Result]] = {s.name: [] for s in subjects}
    took: dict[str, float] = {}
    plan = [s for _ in range(rounds) for s in subjects]
    for number, subject in enumerate(plan):
        if any(FAILED in r for r in found[subject.name]):
            continue
        tell(f"[{number + 1}/{len(plan)}] {subject.name}{time_left(plan[number:], took)}")
        start = time.monotonic()
        result = run(subject)
        took[subject.name] = time.monotonic() - start
        found[subject.name].append(result)
        said = f"could not run: {result[FAILED]}" if FAILED in result else f"{took[subject.name]:.0f} s"
        tell(f"    {said}")
    return found


def time_left(coming: Sequence[Subject], took: Mapping[str, float]) -> str:
    """From what the subjects took before, those of a kind counting for one another."""
    if not took:
        return ""
    mean = sum(took.values()) / len(took)
    left = sum(took.get(s.name, mean) for s in coming)
    return f", about {left / 60:.0f} min left"


def run_alone(subject: Subject, timeout: float = TIMEOUT_S) -> Result:
    """One subject in a process of its own, with the thread count in its environment before torch is loaded."""
    environment = {**OFFLINE, **os.environ, **dict.fromkeys(THREADS, str(subject.threads))}
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
