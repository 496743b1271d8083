"""Run folders -> one flat record of facts per run. Nothing is judged or averaged over runs here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.columns import Questions, StepColumns
from harness.core.results import COLLAPSED, EVALS, STEPS
from harness.core.scores import final_eval, score_of
from harness.stats.curve import dispersion, drawdown
from harness.stats.estimate import clustered_mean, finite
from harness.stats.passes import pass_at

if TYPE_CHECKING:
    from harness.core.results import EvalRecord, RunFolder, RunResult
    from harness.core.scores import Score

COUNTED = ("completed", "collapsed", "no_learning")  # statuses whose score enters every mean
PHASES = {"generation": "perf/t_gen", "grading": "perf/t_reward", "old and reference log-probs": "perf/t_logp",
          "updates": "perf/t_update", "evaluation": "perf/t_eval"}  # of a step's time  # fmt: skip
COLUMNS = (
    "step", "optimizer_steps_cum", "sampled_tokens_cum", "trained_tokens_cum", "prompts_cum", "wallclock_s",
    "reward/mean", "signal/zero_var_frac", "perf/t_step", "entropy/exact", "kl_old/k3/last", "clip/tok_any/last",
    "value/explained_var", "len/mean", "mismatch/abs_dlogp_mean", *PHASES.values(),
)  # of steps.jsonl, read here  # fmt: skip
TAIL = 0.1  # share of the steps that "end of training" means


def status_of(run: RunFolder) -> str:
    """The status of a finished run, or `unfinished`."""
    return run.result.status if run.result is not None else "unfinished"


@dataclass(frozen=True, slots=True)
class Shares:
    """Questions of the final evaluation and the share correct of each, those with an answer only."""

    ids: tuple[str, ...]
    share: np.ndarray


NOTHING = Shares((), np.zeros(0))


def question_scores(run: RunFolder) -> Shares:
    """Shares of the final evaluation; empty where there was none."""
    record = final_eval(run)
    if record is None:
        return NOTHING
    asked, n = record.asked, np.array(record.asked.n, dtype=float)
    if (n > 0).all():
        return Shares(asked.ids, np.array(asked.correct, dtype=float) / n)
    kept = [i for i, drawn in enumerate(n) if drawn > 0]
    return Shares(tuple(asked.ids[i] for i in kept), np.array([asked.correct[i] / n[i] for i in kept]))


def clustered_se(record: EvalRecord) -> float | None:
    """Question-clustered standard error of an evaluation; None where it answered fewer than two questions."""
    asked = record.asked
    return clustered_mean(asked.correct, asked.n)[1] if any(asked.n) else None


def curve(run: RunFolder, split: str) -> dict[str, list[float]]:
    """Held-out score over steps, sampled tokens, trained tokens and training time (the last two where recorded)."""
    points = {e.step: e for e in run.evals if e.split == split}
    ordered = [points[step] for step in sorted(points)]
    at = [float(e.step) for e in ordered]
    return {
        "step": at,
        "sampled_tokens": [float(e.sampled_tokens_cum) for e in ordered],
        "trained_tokens": _spent(run.steps, "trained_tokens_cum", at),
        "wallclock_s": _spent(run.steps, "wallclock_s", at),
        "score": [e.score for e in ordered],
    }


def _spent(rows: Sequence[dict[str, Any]], key: str, steps: Sequence[float]) -> list[float]:
    """What a run had spent by these steps; empty where it was not recorded."""
    pairs = zip(values(rows, "step"), values(rows, key), strict=True)
    known = [(at, v) for at, v in pairs if at is not None and v is not None]
    if not known or not steps:
        return []
    x, y = zip((0.0, 0.0), *known, strict=True)
    return [float(v) for v in np.interp(steps, x, y)]


def evaluations(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Every held-out evaluation of every run, with its question-clustered standard error."""
    return [
        {
            "run": r.path.name, "arm": r.spec.arm, "seed": r.spec.seed, "step": e.step,
            "sampled_tokens": e.sampled_tokens_cum, "split": e.split, "task": e.task, "samples": e.samples,
            "questions": len(e.asked), "score": e.score, "pass_at_k": mean_pass(e.asked, e.samples),
            "se": clustered_se(e),
            "reward_mean": e.reward_mean, "length_mean": e.length_mean, "truncated": e.truncated,
        }
        for r in runs for e in r.evals
    ]  # fmt: skip


def mean_pass(asked: Questions, k: int) -> float | None:
    """Unbiased share of questions that one of k samples solves; None where none has k samples."""
    found = [pass_at(k, n, correct) for n, correct in zip(asked.n, asked.correct, strict=True) if n >= k]
    return sum(found) / len(found) if found else None


def values(steps: Sequence[dict[str, Any]], key: str) -> list[float | None]:
    """One column; missing and non-finite entries are None."""
    if isinstance(steps, StepColumns):
        return steps.column(key)
    return [_number(row.get(key)) for row in steps]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if np.isfinite(value) else None


def tail_mean(column: Sequence[float | None]) -> float | None:
    """Mean over the last tenth of the steps (at least five)."""
    length = max(5, int(np.ceil(TAIL * len(column))))
    kept = finite(column[-length:])
    return float(kept.mean()) if len(kept) else None


def whole_mean(column: Sequence[float | None]) -> float | None:
    """Mean over all steps."""
    kept = finite(column)
    return float(kept.mean()) if len(kept) else None


def updates_per_batch(run: RunFolder) -> int | None:
    """Optimizer steps per rollout batch that the algorithm asks for."""
    resolved = run.result.algorithm_resolved if run.result else {}
    updates = resolved.get("updates")
    if not isinstance(updates, dict):
        return None
    return int(updates.get("mini_batches", 1)) * int(updates.get("epochs", 1))


def run_facts(run: RunFolder) -> dict[str, Any]:
    """The row of a run in the run list and in runs.csv."""
    result, spec, score = run.result, run.spec, score_of(run)
    state = status_of(run)
    last = run.steps[-1] if run.steps else {}
    record = final_eval(run)
    se = clustered_se(record) if record else None
    invalid = result is not None and result.validity == "INVALID"
    counted = state in COUNTED and not invalid and score.value is not None
    return {
        "id": run.path.name,
        "arm": spec.arm,
        "seed": spec.seed,
        "bracket": spec.bracket,
        "roster": spec.roster,
        "status": state,
        "validity": result.validity if result else None,
        "validity_reasons": list(result.validity_reasons) if result else [],
        "error": result.error if result else None,
        "counted": counted,
        "absent": [n for n, rows in ((STEPS, run.steps), (EVALS, run.evals)) if state in COUNTED and not rows],
        "why_not_counted": None if counted else _why_not(state, invalid, score),
        "score": score.value if counted else None,
        "score_source": score.source,
        "base_score": result.base_score if result else _base(run.evals),
        "best_validation": result.best_validation if result else None,
        "eval_se": se,
        "eval_questions": len(record.asked) if record else 0,
        "eval_samples": record.samples if record else None,
        "length": record.length_mean if record else tail_mean(values(run.steps, "len/mean")),
        "truncated": record.truncated if record else None,
        "steps": result.steps if result else int(last.get("step") or 0),
        "optimizer_steps": result.optimizer_steps if result else int(last.get("optimizer_steps_cum") or 0),
        "sampled_tokens": result.sampled_tokens if result else int(last.get("sampled_tokens_cum") or 0),
        "trained_tokens": result.trained_tokens if result else int(last.get("trained_tokens_cum") or 0),
        "prompts": int(last["prompts_cum"]) if last.get("prompts_cum") is not None else None,
        "wallclock_s": result.wallclock_s if result else _number(last.get("wallclock_s")),
        "seconds_per_million": _per_million(result),
        "memory_mib": _memory(result),
        "resumes": result.resumes if result else None,
        "reward_end": tail_mean(values(run.steps, "reward/mean")),
        "zero_var": whole_mean(values(run.steps, "signal/zero_var_frac")),
        "step_s": whole_mean(values(run.steps, "perf/t_step")),
        "entropy_end": tail_mean(values(run.steps, "entropy/exact")),
        "kl_old": whole_mean(values(run.steps, "kl_old/k3/last")),
        "clip_tok_any": whole_mean(values(run.steps, "clip/tok_any/last")),
        "explained_var": tail_mean(values(run.steps, "value/explained_var")),
        "phases": {name: whole_mean(values(run.steps, key)) for name, key in PHASES.items()},
        "lr": spec.recipe.lr,
        "updates_per_batch": updates_per_batch(run),
        **_stability(run, state),
        "spec_hash": spec.hash,
        "start_weights": result.provenance.model_sha256 if result else None,
        "deviations": list(result.deviations) if result else [],
    }


def _stability(run: RunFolder, state: str) -> dict[str, Any]:
    """Events, the budget at the first collapse, and how the validation score moved."""
    evals = sorted((e for e in run.evals if e.split == "validation"), key=lambda e: e.step)
    return {
        "events": [
            {
                "type": e.type,
                "severity": e.severity,
                "onset_step": e.onset_step,
                "confirm_step": e.confirm_step,
                "clear_step": e.clear_step,
                "rule_id": e.rule_id,
                "rule_version": e.rule_version,
                "evidence": e.evidence,
                "peak_value": e.peak_value,
                "baseline_value": e.baseline_value,
                "sampled_tokens_at_onset": e.sampled_tokens_at_onset,
            }
            for e in run.events
        ],
        "collapse_tokens": _collapse_tokens(run, state),
        "drawdown": drawdown([e.score for e in evals]),
        "dispersion": dispersion([e.score for e in evals]),
        "last_evals": float(np.mean([e.score for e in evals[-3:]])) if len(evals) >= 3 else None,
    }


def _base(evals: Iterable[EvalRecord]) -> float | None:
    start = [e for e in evals if e.step == 0 and e.split == "test"]
    return start[0].score if start else None


def _collapse_tokens(run: RunFolder, state: str) -> int | None:
    """Sampled tokens at the onset of a collapsed run's first collapse; at its end where no event says."""
    if state != "collapsed" or run.result is None:
        return None
    known = [e.sampled_tokens_at_onset for e in run.events if e.severity in COLLAPSED]
    return min((t for t in known if t is not None), default=run.result.sampled_tokens)


def _per_million(result: RunResult | None) -> float | None:
    """Training time per million sampled tokens, discarded ones included."""
    if result is None or not result.sampled_tokens or not result.wallclock_s:
        return None
    return 1e6 * result.wallclock_s / result.sampled_tokens


def _memory(result: RunResult | None) -> float | None:
    if result is None or result.peak_memory_mib is None:
        return None
    return max(0.0, result.peak_memory_mib - (result.memory_after_import_mib or 0.0))


def _why_not(state: str, invalid: bool, score: Score) -> str:
    if state == "unfinished":
        return "not finished; running the same command again continues it"
    if state == "infra_failed":
        return "failed for reasons outside the algorithm; running the same command again repeats it"
    return "the set-up is INVALID" if invalid else score.source
