"""report.json and the evaluations -> CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.core.results import StudyFolder

RUNS = (
    "id", "arm", "seed", "bracket", "roster", "status", "validity", "counted", "why_not_counted", "score",
    "score_source",
    "base_score", "best_validation", "eval_se", "eval_questions", "eval_samples", "length", "truncated", "steps",
    "optimizer_steps", "sampled_tokens", "trained_tokens", "prompts", "wallclock_s", "memory_mib",
    "step_s", "reward_end", "zero_var", "entropy_end", "kl_old",
    "clip_tok_any", "explained_var", "updates_per_batch", "resumes", "error", "spec_hash", "start_weights",
)  # fmt: skip
COMPARISONS = (
    "a", "b", "bracket", "roster", "family_name", "value", "low", "high", "level", "n", "sd", "estimator", "test",
    "p_adjusted", "family", "p_t", "p_sign_flip", "p_tost", "p_tost_adjusted", "mde", "seeds_needed",
    "seeds_needed_upper", "eval_noise", "rho", "label", "why", "runs",
)  # fmt: skip
EVALS = (
    "run",
    "arm",
    "seed",
    "step",
    "sampled_tokens",
    "split",
    "task",
    "samples",
    "questions",
    "score",
    "reward_mean",
    "length_mean",
    "truncated",
)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Lists are joined; text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    if isinstance(value, str) and value[:1] in "=+-@":
        return "'" + value
    return value


def runs(report: Mapping[str, Any]) -> str:
    """runs.csv."""
    return _csv(RUNS, report["runs"])


def comparisons(report: Mapping[str, Any]) -> str:
    """comparisons.csv: against the reference, then all pairs."""
    named = [
        {**c, "family_name": name}
        for name, key in (("reference", "comparisons"), ("all pairs", "all_pairs"))
        for c in report[key]
    ]
    return _csv(COMPARISONS, named)


def evals(study: StudyFolder) -> str:
    """evals.csv: one line per held-out evaluation."""
    rows = (
        {
            "run": r.path.name, "arm": r.spec.arm, "seed": r.spec.seed, "step": e.step,
            "sampled_tokens": e.sampled_tokens_cum,
            "split": e.split, "task": e.task, "samples": e.samples, "questions": len(e.questions), "score": e.score,
            "reward_mean": e.reward_mean, "length_mean": e.length_mean, "truncated": e.truncated,
        }
        for r in study.runs
        for e in r.evals
    )  # fmt: skip
    return _csv(EVALS, rows)
