"""report.json and the evaluations -> CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

RUNS = (
    "id", "arm", "seed", "bracket", "roster", "status", "validity", "counted", "why_not_counted", "score",
    "score_source",
    "base_score", "best_validation", "eval_se", "eval_questions", "eval_samples", "length", "truncated", "steps",
    "optimizer_steps", "sampled_tokens", "trained_tokens", "prompts", "wallclock_s", "seconds_per_million",
    "memory_mib", "step_s", "reward_end", "zero_var", "entropy_end", "kl_old",
    "clip_tok_any", "explained_var", "updates_per_batch", "resumes", "error", "spec_hash", "start_weights",
)  # fmt: skip
COMPARISONS = (
    "a", "b", "bracket", "roster", "family_name", "value", "low", "high", "level", "n", "sd", "estimator", "test",
    "p_adjusted", "p_exchange", "alpha", "family", "exploratory", "p_t", "p_sign_flip",
    "p_tost", "p_tost_adjusted", "mde", "seeds_needed",
    "seeds_needed_upper", "seeds_needed_tost", "eval_noise", "rho", "p_better", "p_better_low",
    "p_better_high", "auc", "auc_low", "auc_high", "k_a", "n_a", "k_b", "n_b", "p_barnard", "p_mcnemar",
    "p_logrank_paired", "label", "why", "runs",
)  # fmt: skip
EVENTS = (
    "run", "arm", "seed", "status", "type", "severity", "onset_step", "confirm_step", "clear_step",
    "sampled_tokens_at_onset", "evidence", "peak_value", "baseline_value", "rule_id", "rule_version",
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
    "se",
    "pass_at_k",
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
        {**c, "family_name": name, **_flat(c)}
        for name, key in (("reference", "comparisons"), ("all pairs", "all_pairs"))
        for c in report[key]
    ]
    return _csv(COMPARISONS, named)


def _flat(c: Mapping[str, Any]) -> dict[str, Any]:
    """P(A > B), difference of areas and collapse tests of a comparison of page one as columns."""
    test, better, auc = c.get("collapse_test") or {}, c.get("improvement") or {}, c.get("auc") or {}
    return {
        "p_better": better.get("value"), "p_better_low": better.get("low"), "p_better_high": better.get("high"),
        "auc": auc.get("value"), "auc_low": auc.get("low"), "auc_high": auc.get("high"),
        **{k: test.get(k) for k in ("k_a", "n_a", "k_b", "n_b", "p_barnard", "p_mcnemar", "p_logrank_paired")},
    }  # fmt: skip


def evals(report: Mapping[str, Any]) -> str:
    """evals.csv: one line per held-out evaluation."""
    return _csv(EVALS, report["evals"])


def events(report: Mapping[str, Any]) -> str:
    """events.csv: one line per collapse event."""
    rows = [{"run": r["id"], "arm": r["arm"], "seed": r["seed"], "status": r["status"], **e}
            for r in report["runs"] for e in r["events"]]  # fmt: skip
    return _csv(EVENTS, rows)


MAKERS = {"runs": runs, "comparisons": comparisons, "evals": evals, "events": events}


def together(data: Mapping[str, Any], maker: Callable[[Mapping[str, Any]], str]) -> str:
    """One CSV of several studies, with the study as its first column."""
    lines: list[str] = []
    for name, report in zip(data["names"], data["studies"], strict=True):
        head, *rows = csv.reader(io.StringIO(maker(report)))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(([] if lines else [["study", *head]]) + [[_plain(name), *row] for row in rows])
        lines.append(buffer.getvalue())
    return "".join(lines)
