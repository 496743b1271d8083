"""Run folders in MLflow's terms: flat parameters, tags, and metrics as (key, value, time in ms, step)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.ablation import TRIALS, Trials
from harness.core.benchmarks import BenchmarkRow
from harness.core.metrics import ROW_COLUMNS
from harness.core.results import COLLAPSED, EvalRecord, EventRecord, RunFolder
from harness.core.spec import stable_hash, without

LONGEST_VALUE = 500
_NO_METRIC = {column.key for column in ROW_COLUMNS} - {"sampled_tokens_cum", "lr", "wallclock_s"}
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. :/]")
# What the run folder keeps and a browser of curves does not miss; a third of all points, and MLflow takes about
# 0.1 ms for each: tails of the ratios, and values at the first update, where ratios are 1 and clip fractions 0.
_FOLDER_ONLY = re.compile(
    r"^(ratio/(tok|seq_geo)_(q\d+|min)|perf/mem_(?!peak)|clip/seq_(low|high)|(ratio|clip|kl_old|penalty)/.*/first$)"
)


class Point(NamedTuple):
    """One value of one curve."""

    key: str
    value: float
    time_ms: int
    step: int


def clean(name: str) -> str:
    """A name that MLflow accepts."""
    return _FORBIDDEN.sub("_", name)


def row_points(rows: Iterable[Mapping[str, Any]], start_ms: int) -> Iterator[Point]:
    """The curves in rows of steps.jsonl; nulls are left out."""
    for row in rows:
        time = start_ms + int(1000 * (row.get("wallclock_s") or 0.0))
        for key, value in row.items():
            if key in _NO_METRIC or not isinstance(value, (int, float)) or _FOLDER_ONLY.match(key):
                continue
            yield Point(clean(key), float(value), time, row["step"])


def eval_points(records: Iterable[EvalRecord], start_ms: int) -> Iterator[Point]:
    """Held-out scores, response lengths, truncation and parts of the reward."""
    for record in records:
        prefix = f"eval/{record.task}/{record.split}"
        values = {
            f"avg_at_{record.samples}": record.score,
            "length_mean": record.length_mean,
            "truncated": record.truncated,
            **{f"component/{name}": value for name, value in record.components.items()},
        }
        for name, value in values.items():
            if value is not None:
                yield Point(clean(f"{prefix}/{name}"), value, start_ms + record.step, record.step)


def benchmark_points(rows: Iterable[BenchmarkRow], start_ms: int) -> Iterator[Point]:
    """Benchmark scores: the base model's at step 0, the run's at the step of its checkpoint."""
    for row in rows:
        values = {
            f"avg_at_{row.samples}": row.avg_at_k.value,
            f"pass_at_{row.samples}": row.pass_at_k.value,
            "cut_off": row.cut_off,
            "rating": row.rating.value if row.rating else None,
        }
        step = row.step or 0
        for name, value in values.items():
            if value is not None:
                yield Point(clean(f"eval/{row.benchmark}/{name}"), value, start_ms + step, step)


def event_points(events: Iterable[EventRecord], start_ms: int) -> Iterator[Point]:
    """1 at the onset of every event."""
    for event in events:
        yield Point(clean(f"event/{event.type}"), 1.0, start_ms + event.onset_step, event.onset_step)


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested data as dotted keys; lists of plain values stay together."""
    if isinstance(value, Mapping) and value:
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {clean(prefix): str(value)[:LONGEST_VALUE]}


def arm_key(run: RunFolder) -> str:
    """Names the arm and its configuration: what all its seeds share."""
    data = run.spec.model_dump(mode="json", exclude={"seed", "own_backend"})
    return f"{run.spec.arm}-{stable_hash({**data, 'backend': without(data['backend'], fp32_head=False)})[:8]}"


def run_tags(run: RunFolder) -> dict[str, str]:
    """Tags of a child run; those that only the result knows appear with it."""
    spec = run.spec
    tags = {
        "run_id": run.run_id,
        "arm": spec.arm,
        "algorithm": spec.algorithm,
        "bracket": spec.bracket,
        "roster": spec.roster,
        "seed": str(spec.seed),
        "status": status(run),
        "schema": str(spec.schema_version),
        "numerics": str(spec.numerics_version),
    }
    if run.result:
        tags |= {"validity": run.result.validity, "commit": run.result.provenance.git_commit or "unknown"}
        engine = run.result.provenance.engine
        tags["engine"] = f"{engine.name} {engine.version} {engine.dtype}" if engine else "unknown"
        tags["deviations"] = "; ".join(run.result.deviations)[:LONGEST_VALUE] or "none"
    collapses = [event for event in run.events if event.severity in COLLAPSED]
    if collapses:
        first = min(collapses, key=lambda event: event.onset_step)
        tags |= {"collapse.first_type": first.type, "collapse.first_step": str(first.onset_step)}
    return tags


def trial_tags(study: Path, arm: str) -> dict[str, str]:
    """The Optuna trial behind an arm of an ablation or a search; empty for other studies."""
    path = study / TRIALS
    if not path.exists():
        return {}
    record = Trials.model_validate_json(path.read_text(encoding="utf-8"))
    number = record.trials.get(arm)
    return {} if number is None else {"optuna.study": record.study, "optuna.trial": str(number)}


def status(run: RunFolder) -> str:
    """planned, started, or how it ended."""
    return run.result.status if run.result else run.state
