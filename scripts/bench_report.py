"""How long `harness report` takes, and how much memory: studies of several sizes in the published schema.

    python -m scripts.bench_report --out results/reference/report-scale

One run of every arm is generated with every column of the metric dictionary; the other seeds are links to its files
with a spec and a result of their own, so that a million rows (7 GB to read) need little disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.core.provenance import collect
from harness.core.results import EVALS, EVENTS, RESULT, RUNS, SAMPLES, SPEC, STEPS, read_run, to_json, write_atomic
from harness.core.spec import ArmSpec
from tests.fakes.run_folders import run_spec, write_fake_study

SIZES = {"24 x 200": (6, 4, 200), "100 x 300": (10, 10, 300), "1000 x 1000": (20, 50, 1000)}
LIMITS = {"24 x 200": "10 s", "100 x 300": "a page under 5 MB", "1000 x 1000": "60 s and 2 GB"}
ALGORITHMS = ("ppo", "grpo", "dapo", "gspo", "gspo_token", "gfpo", "rloo", "drgrpo")


def make(path: Path, arms: int, seeds: int, steps: int) -> None:
    """A study of arms x seeds runs."""
    specs = [ArmSpec(name=f"{ALGORITHMS[i % 8]} {i}", algorithm=ALGORITHMS[i % 8]) for i in range(arms)]
    study = write_fake_study(
        path, specs, range(seeds), steps, missing=[(a.name, s) for a in specs for s in range(1, seeds)]
    )
    for arm in specs:
        first = path / RUNS / run_spec(study, arm, 0).run_id
        result = read_run(first, ()).result
        assert result is not None
        assert result.final_score is not None
        for seed in range(1, seeds):
            spec = run_spec(study, arm, seed)
            folder = path / RUNS / spec.run_id
            folder.mkdir(parents=True)
            for name in (STEPS, EVALS, EVENTS, SAMPLES):
                os.link(first / name, folder / name)
            write_atomic(folder / SPEC, to_json(spec))
            score = min(1.0, result.final_score * (0.9 + 0.2 * ((seed * 37) % 50) / 50))
            changed = result.model_copy(update={"run_id": spec.run_id, "final_score": score})
            write_atomic(folder / RESULT, to_json(changed))


def measure(study: Path) -> dict[str, Any]:
    """Seconds, peak memory and size of the page of one report, in a process of its own."""
    start, pid = time.monotonic(), os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execv(sys.executable, [sys.executable, "-c", "from harness.cli import main; main()", "report", str(study)])
    _, status, used = os.wait4(pid, 0)
    html, source = (study / "report" / f"report.{kind}" for kind in ("html", "json"))
    return {
        "seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1000), "exit": os.waitstatus_to_exitcode(status),
        "html_mb": round(html.stat().st_size / 1e6, 2), "json_mb": round(source.stat().st_size / 1e6, 2),
    }  # fmt: skip


def page(data: dict[str, Any]) -> str:
    """README.md."""
    rows = [
        f"| {name} | {r['seconds']} | {r['cpu_seconds']} | {r['peak_mb']:,} | {r['html_mb']} | {r['json_mb']} | "
        f"{LIMITS[name]} |"
        for name, r in data["sizes"].items()
    ]
    p = data["provenance"]
    return "\n".join([
        "# report-scale: what a report costs", "", "```",
        "python -m scripts.bench_report --out results/reference/report-scale", "```", "",
        "`harness report` on generated studies with every metric column, all formats and figures.", "",
        "| runs x steps | seconds | CPU seconds | peak memory, MB | report.html, MB | report.json, MB | asked for |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"{p['cpu']}, {len(os.sched_getaffinity(0))} CPUs used, Python {p['python']}, commit "
        f"{(p['git_commit'] or 'unknown')[:12]}, load average {data['load']:.1f} at the start.", "",
    ])  # fmt: skip


def run(arguments: Sequence[str] | None = None) -> int:
    """Generates, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for README.md and scale.json")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data: dict[str, Any] = {"provenance": collect([]).model_dump(mode="json"), "load": os.getloadavg()[0], "sizes": {}}
    for name in options.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "study", *SIZES[name])
            data["sizes"][name] = measure(Path(folder) / "study")
        print(name, data["sizes"][name], flush=True)
    if options.out:
        write_atomic(options.out / "scale.json", json.dumps(data, indent=1) + "\n")
        write_atomic(options.out / "README.md", page(data))
    return 0


if __name__ == "__main__":
    sys.exit(run())
