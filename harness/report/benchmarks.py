"""Benchmark scores of `harness eval`: the base model and every arm, in the same setting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.core.benchmarks import BenchmarkRow, read_benchmarks
from harness.report import text
from harness.report.tables import Cell, Notes, Table, cell, make_table
from harness.stats.estimate import mean_t

if TYPE_CHECKING:
    from harness.core.results import StudyFolder


def benchmark_scores(study: StudyFolder) -> list[dict[str, Any]]:
    """One row per benchmark, setting and model: the base model, then the arms that were scored."""
    base: dict[str, BenchmarkRow] = {}
    arms: dict[str, dict[tuple[str, str], dict[str, BenchmarkRow]]] = {}
    for run in study.runs:
        for row in read_benchmarks(run.path):
            key = json.dumps([row.benchmark, row.data_sha256, row.samples, row.settings], sort_keys=True)
            of_arm = arms.setdefault(key, {})
            if row.role == "base":
                base[key] = row
            else:
                of_arm.setdefault((run.spec.arm, row.checkpoint or ""), {})[run.path.name] = row
    rows = []
    for key in sorted(arms):
        before = base.get(key)
        rows += [_row("base model", "", [], [before], None)] if before else []
        rows += [_row(arm, at, list(of), list(of.values()), before) for (arm, at), of in arms[key].items()]
    return rows


def _row(
    name: str, checkpoint: str, runs: Sequence[str], scored: Sequence[BenchmarkRow], base: BenchmarkRow | None
) -> dict[str, Any]:
    """Over several runs the interval is over runs; of one model it is over questions."""
    first = scored[0]

    def over(field: str) -> dict[str, Any]:
        single: dict[str, Any] = getattr(first, field).model_dump()
        return single if len(scored) == 1 else mean_t([getattr(s, field).value for s in scored]).as_dict()

    return {
        "benchmark": first.benchmark, "model": name, "checkpoint": checkpoint, "runs": list(runs),
        "questions": len(first.questions), "samples": first.samples, "avg_at_k": over("avg_at_k"),
        "pass_at_k": over("pass_at_k"), "gain": _gain(scored, base),
        "rating": over("rating") if all(s.rating for s in scored) else None,
        "cut_off": fmean(s.cut_off for s in scored), "settings": first.settings,
        "template_sha256": first.template_sha256, "same_template": _same(scored, base),
        "data_sha256": first.data_sha256, "isolation": first.isolation,
    }  # fmt: skip


def _same(scored: Sequence[BenchmarkRow], base: BenchmarkRow | None) -> bool:
    return len({row.template_sha256 for row in (*scored, *((base,) if base else ()))}) == 1


def _gain(scored: Sequence[BenchmarkRow], base: BenchmarkRow | None) -> dict[str, Any] | None:
    """Mean over questions of (share right, mean over runs) - (share right of the base model), paired by question."""
    if base is None:
        return None
    before = {q.id: q.correct / q.n for q in base.questions}
    after: dict[str, list[float]] = {}
    for row in scored:
        for q in row.questions:
            after.setdefault(q.id, []).append(q.correct / q.n)
    differences = [fmean(shares) - before[name] for name, shares in after.items() if name in before]
    name = "mean over questions of the difference to the base model, t interval clustered by question"
    return {**mean_t(differences).as_dict(), "estimator": name}


def benchmarks(report: Mapping[str, Any]) -> Table:
    """Score, gain and truncation per benchmark and model."""
    notes = Notes()
    groups: dict[str, list[list[Cell]]] = {}
    for row in report.get("benchmarks", ()):
        how, k = row["settings"], row["samples"]
        drawn = "greedy" if how["temperature"] == 0 else f"temperature {how['temperature']:g}"
        limit = f"at most {how['max_new_tokens']} tokens, {how['engine']} in {how['dtype']}"
        title = f"{row['benchmark']}: avg@{k}, {drawn}, {limit}"
        own = [cell(row["model"], row["checkpoint"], "arm"), notes.value(row["avg_at_k"], "score")]
        own.append(notes.value(row["gain"], "signed") if row["gain"] else cell(""))
        own += [notes.value(row["pass_at_k"], "score"), cell(text.FORMATS["fraction"](row["cut_off"]))]
        size = f"{len(row['runs'])} x {row['questions']}" if row["runs"] else str(row["questions"])
        own.append(cell(size, "" if row["same_template"] else "other template than the base model"))
        groups.setdefault(title, []).append(own)
    columns = ("Model", "avg@k", "Gain over the base model", "pass@k", "Cut off", "Runs x questions")
    return make_table(columns, list(groups.items()), notes.listed())
