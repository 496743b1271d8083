"""`harness probe`: what the untrained model can do on a task, and which of its prompts are worth training on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.compare import choices
from harness.commands.options import CompareOptions
from harness.core.errors import UsageError, near
from harness.core.ports import Split, Task
from harness.core.results import write_atomic
from harness.core.spec import BackendSpec, StudySpec, stable_hash
from harness.models.recipes import held_out, recipe
from harness.stats.passes import informative, over_questions, pass_at
from harness.study.build import build, run_specs
from harness.study.live import duration
from harness.study.measure import choose_backend

if TYPE_CHECKING:
    from harness.assemble import Assembly
    from harness.core.types import Prompt, RolloutGroup

PROBE_STREAM = 15_485_863  # opens the random stream of probes, apart from training and evaluation
GROUPS = (2, 4, 8, 16, 32, 64)
BATCH = 8  # prompts sampled at once
PROBE, FILTERED, SUMMARY = "probe.jsonl", "filtered.jsonl", "probe.json"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """The command line as given; what names task and model is that of `compare`."""

    study: CompareOptions
    split: str
    prompts: int
    samples: int
    keep: str
    out: Path | None


def run_probe(options: ProbeOptions) -> int:
    """Samples what is not sampled yet, then summarises; the exit code."""
    low, high = _bounds(options.keep)
    if options.prompts < 1 or options.samples < 2:
        raise UsageError(
            f"--prompts {options.prompts} --samples {options.samples}", "nothing could be told from it",
            "at least 1 prompt and 2 samples",
        )  # fmt: skip
    split = _split(options.split)
    planned = build(choices(options.study), recipe, held_out, _backend)
    spec, task = planned.spec, planned.task
    size = task.info.sizes.get(split)
    count = options.prompts if size is None else min(options.prompts, size)
    settings = [spec.hash, options.split, options.samples]
    folder = options.out or options.study.results / f"probe-{spec.name}-{stable_hash(settings)[:6]}"
    if options.study.dry_run:
        print(f"{count} prompts x {options.samples} samples of {spec.model.name} on {spec.task.name} -> {folder}")
        return 0
    rows = _sampled(spec, task, options, count, folder)
    found = summary(rows, low, high)
    write_atomic(
        folder / SUMMARY, json.dumps({"task": spec.task.name, "model": spec.model.name, **found}, indent=1) + "\n"
    )
    kept = [row for row in rows if low <= row["pass_rate"] <= high and row["answer"] is not None]
    fields = ("id", "question", "answer", "pass_rate")
    write_atomic(folder / FILTERED, "".join(json.dumps({key: row[key] for key in fields}) + "\n" for row in kept))
    if options.study.as_json:
        print(json.dumps({"folder": str(folder), **found}))
    else:
        print(described(found, low, high))
        print(f"samples  {folder / PROBE}\nprompts  {_use(folder, kept, task)}")
    return 0


def _backend(spec: StudySpec) -> BackendSpec:
    return choose_backend(spec.model, spec.backend.model_dump(exclude_unset=True))[0]


def _split(text: str) -> Split:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        if text == split:
            return split
    raise UsageError(f"--split {text}", "no such split", near(text, splits))


def _bounds(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UsageError(f"--keep {text}", "not two pass rates between 0 and 1", "e.g. --keep 0.1,0.9")
    return low, high


def _sampled(spec: StudySpec, task: Task, options: ProbeOptions, count: int, folder: Path) -> list[Row]:
    """One row per prompt, those of an earlier, interrupted call included."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PROBE
    known = {row["index"]: row for row in _read(file)}
    todo = [i for i in range(count) if i not in known]
    if todo:
        with file.open("a", encoding="utf-8") as out:
            for row in _sample(spec, options, todo, count):
                known[row["index"]] = row
                out.write(json.dumps(row) + "\n")
                out.flush()
    return [known[i] for i in range(count)]


def _read(file: Path) -> Iterator[Row]:
    """Complete lines; a torn last one is sampled again, after being cut off."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        file.write_bytes(whole)
    for line in whole.splitlines():
        yield json.loads(line)


def _sample(spec: StudySpec, options: ProbeOptions, todo: Sequence[int], count: int) -> Iterator[Row]:
    import torch

    from harness.assemble import assemble

    torch.set_num_threads(spec.backend.threads)
    parts = assemble(run_specs(spec)[0])
    try:
        parts.sampler.sync(0)
        start = time.monotonic()
        for first in range(0, len(todo), BATCH):
            indices = todo[first : first + BATCH]
            prompts = [parts.task.item(_split(options.split), i) for i in indices]
            groups = parts.collector.collect(prompts, options.samples, (PROBE_STREAM, spec.seeds[0])).groups
            yield from (_row(i, p, g, parts) for i, p, g in zip(indices, prompts, groups, strict=True))
            done = first + len(indices)
            left = (time.monotonic() - start) / done * (len(todo) - done)
            print(f"{count - len(todo) + done}/{count} prompts, {duration(left)} to go", file=sys.stderr, flush=True)
    finally:
        parts.sampler.close()


def _row(index: int, prompt: Prompt, group: RolloutGroup, parts: Assembly) -> Row:
    rows = group.trajectories
    n, correct = len(rows), sum(t.grade.correct for t in rows)
    answer = prompt.answer if isinstance(prompt.answer, str) else None
    return {
        "index": index,
        "id": prompt.id,
        "n": n,
        "correct": correct,
        "pass_rate": correct / n,
        "truncated": sum(t.finish_reason == "length" for t in rows),
        "unreadable": sum(t.grade.extracted is None for t in rows),
        "failed": sum(t.grade.failed for t in rows),
        "tokens": sum(t.num_tokens for t in rows),
        "question": prompt.messages[-1]["content"],
        "answer": answer,
        "first_response": rows[0].text,
        "why": rows[0].grade.why,
    }


def summary(rows: Sequence[Mapping[str, Any]], low: float, high: float) -> dict[str, Any]:
    """All numbers that the command prints."""
    n = min(row["n"] for row in rows)
    sizes = [k for k in (1, *GROUPS) if k <= n]
    total = sum(row["n"] for row in rows)
    shares = {key: sum(row[key] for row in rows) / total for key in ("truncated", "unreadable", "failed")}
    return {
        "prompts": len(rows),
        "samples": n,
        "pass_at": {
            k: over_questions([pass_at(k, r["n"], r["correct"]) for r in rows], f"pass@{k}").as_dict() for k in sizes
        },
        "unsolved": sum(row["correct"] == 0 for row in rows) / len(rows),
        "always_solved": sum(row["correct"] == row["n"] for row in rows) / len(rows),
        **shares,
        "mean_tokens": sum(row["tokens"] for row in rows) / total,
        "informative": {g: sum(informative(g, r["n"], r["correct"]) for r in rows) / len(rows) for g in GROUPS},
        "kept": sum(low <= row["pass_rate"] <= high for row in rows),
    }


def described(found: Mapping[str, Any], low: float, high: float) -> str:
    """The summary as a text."""
    lines = [f"{found['prompts']} prompts, {found['samples']} samples each"]
    for k, e in found["pass_at"].items():
        interval = "" if e["low"] is None else f"  [{e['low']:.3f}, {e['high']:.3f}]"
        lines.append(f"pass@{k:<5} {e['value']:.3f}{interval}")
    lines.append(f"never solved {found['unsolved']:.1%}, always {found['always_solved']:.1%} of the prompts")
    lines.append(
        f"cut off {found['truncated']:.1%}, no answer read {found['unreadable']:.1%}, grading failed "
        f"{found['failed']:.1%} of the responses, {found['mean_tokens']:.0f} tokens on average"
    )
    shown = ", ".join(
        f"G={g} {share:.1%}{'' if g <= found['samples'] else '*'}" for g, share in found["informative"].items()
    )
    lines.append(f"informative groups expected: {shown}")
    if found["samples"] < max(GROUPS):
        lines.append("  (*: more than were sampled, from the pass rates; too low for rates that are 0 or 1 by chance)")
    lines.append(f"{found['kept']} prompts have a pass rate from {low:g} to {high:g}")
    return "\n".join(lines)


def _use(folder: Path, kept: Sequence[Row], task: Task) -> str:
    if not kept:
        return f"{folder / FILTERED} is empty: no prompt in these bounds has an answer that is a text"
    match, extract = getattr(task, "match", None), getattr(task, "extract", None)
    if match is None:
        return f"{folder / FILTERED}, for reading: only this task grades their answers as it does"
    how = f"-t match={match}" + ("" if match == "math" else f" -t extract={extract}")
    return f"{folder / FILTERED}: harness compare --task {folder / FILTERED} {how}"
