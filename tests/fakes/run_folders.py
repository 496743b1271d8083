"""Study folders that look like the real thing, for tests of whatever reads them. Deterministic."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.core import results
from harness.core.metrics import METRIC_COLUMNS, describe, make_row
from harness.core.results import (
    EvalRecord,
    EventRecord,
    Provenance,
    QuestionScore,
    RunResult,
    SampleRecord,
    append_line,
    dumps,
    to_json,
    write_atomic,
    write_study_spec,
)
from harness.core.spec import ArmSpec, Budget, EvalSpec, ModelSpec, Recipe, RunSpec, StudySpec, TaskSpec

TOKENS_PER_STEP = 4096
QUESTIONS = 100
DEFAULT_ARMS = ("PPO", "GRPO", "DAPO", "GSPO", "GFPO")


def write_fake_study(
    path: Path,
    arms: Sequence[str | ArmSpec] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 40,
    *,
    name: str | None = None,
    gains: Mapping[str, float] | None = None,
    collapsed: Sequence[tuple[str, int]] = (),
    failed: Sequence[tuple[str, int]] = (),
    unfinished: Sequence[tuple[str, int]] = (),
    missing: Sequence[tuple[str, int]] = (),
    eval_points: int = 8,
    task: str = "chain",
    model: str = "tiny",
    reference_arm: str | None = None,
    spec_changes: Mapping[str, Any] | None = None,
) -> StudySpec:
    """Writes a schema-valid study with plausible curves into `path`.

    `gains`: final score minus base, by arm. (arm, seed) pairs in `collapsed` lose their score after 60 % of the
    steps, `failed` ends as infra_failed, `unfinished` has no result.json, `missing` no folder.
    """
    specs = tuple(arm if isinstance(arm, ArmSpec) else ArmSpec(name=arm, algorithm=arm.lower()) for arm in arms)
    names = [arm.name for arm in specs]
    study = StudySpec(
        name=name or path.name,
        task=TaskSpec(name=task),
        model=ModelSpec(name=model),
        recipe=Recipe(max_new_tokens=35, lr=3e-4),
        budget=Budget(sampled_tokens=steps * TOKENS_PER_STEP),
        eval=EvalSpec(points=eval_points, prompts=QUESTIONS, final_prompts=QUESTIONS),
        arms=specs,
        seeds=tuple(seeds),
        reference_arm=reference_arm or ("GRPO" if "GRPO" in names else names[0]),
    ).model_copy(update=dict(spec_changes or {}))
    write_study_spec(path, study)
    for index, arm in enumerate(specs):
        gain = (gains or {}).get(arm.name, 0.35 + 0.04 * (index % 5))
        for seed in seeds:
            pair = (arm.name, seed)
            if pair in missing:
                continue
            kind = "collapsed" if pair in collapsed else "infra_failed" if pair in failed else "completed"
            _write_run(path, study, arm, seed, steps, gain, kind, finished=pair not in unfinished)
    return study


def run_spec(study: StudySpec, arm: ArmSpec, seed: int) -> RunSpec:
    """The run of one arm at one seed."""
    shared = {k: getattr(study, k) for k in ("task", "model", "recipe", "budget", "eval", "backend", "schedule")}
    return RunSpec(
        numerics_version=1, arm=arm.name, algorithm=arm.algorithm, overrides=arm.overrides, bracket=arm.bracket,
        roster=arm.roster, seed=seed, **shared,
    )  # fmt: skip


def _write_run(
    path: Path, study: StudySpec, arm: ArmSpec, seed: int, steps: int, gain: float, kind: str, *, finished: bool
) -> None:
    spec = run_spec(study, arm, seed)
    folder = path / results.RUNS / spec.run_id
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / results.SPEC, to_json(spec))
    rng = np.random.default_rng([zlib.crc32(arm.name.encode()), seed])
    done = steps if finished and kind != "infra_failed" else max(1, steps // 2)
    x = np.arange(0, steps + 1) / steps
    curve = 0.35 + (gain + rng.normal(0, 0.015)) * (1 - np.exp(-3.5 * x)) / (1 - np.exp(-3.5))
    if kind == "collapsed":
        curve = np.where(x > 0.6, 0.35 * np.exp(-12 * (x - 0.6)), curve)
    curve = np.clip(curve, 0.0, 0.99)
    rows = [fake_row(rng, step, steps, float(curve[step]), arm.algorithm) for step in range(1, done + 1)]
    (folder / results.STEPS).write_text("".join(dumps(row) + "\n" for row in rows))
    scores = _write_evals(folder, study, rng, curve, steps, done)
    _write_samples(folder, rng, done)
    (folder / results.EVENTS).touch()
    if kind == "collapsed" and done > int(0.7 * steps):
        event = EventRecord(
            type="reward_collapse", severity="COLLAPSE", onset_step=int(0.6 * steps) + 1,
            confirm_step=int(0.7 * steps) + 1, peak_value=0.05, baseline_value=0.7, rule_id="reward_collapse",
            sampled_tokens_at_onset=(int(0.6 * steps) + 1) * TOKENS_PER_STEP,
        )  # fmt: skip
        append_line(folder / results.EVENTS, to_json(event))
    if finished:
        write_atomic(folder / results.RESULT, to_json(_result(spec, kind, rows, scores)))


def fake_row(rng: np.random.Generator, step: int, steps: int, reward: float, algorithm: str) -> dict[str, Any]:
    """One row of steps.jsonl: every column, plausible values, null where the algorithm lacks the quantity."""
    x = step / steps
    noise = float(rng.normal())
    fields = {
        "step": step,
        "optimizer_steps_cum": 4 * step,
        "sampled_tokens_cum": step * TOKENS_PER_STEP,
        "trained_tokens_cum": int(0.8 * step * TOKENS_PER_STEP),
        "prompts_cum": 32 * step,
        "wallclock_s": 0.25 * step + 0.01 * abs(noise),
        "budget_fraction": x,
        "lr": 3e-4,
    }
    shaped = {
        "reward/mean": reward + 0.02 * noise,
        "entropy/exact": 0.6 * float(np.exp(-2 * x)) + 0.02 + 0.005 * abs(noise),
        "len/mean": 15 + 2 * x + 0.2 * noise,
        "len/p95": 28.0,
        "grad/norm_pre": 0.7 * float(np.exp(0.2 * noise)),
        "kl_old/k3": 1e-3 * float(np.exp(0.3 * noise)),
        "clip/tok_any": (0.28 if "gspo" in algorithm else 0.004) * float(np.exp(0.1 * noise)),
        "signal/zero_var_frac": 0.1 + 0.5 * x,
        "ratio/ess_tok": 0.99 - 0.01 * abs(noise),
        "ratio/tok_mean": 1.0,
        "perf/tok_per_s_e2e": 16_000.0 + 300 * noise,
        "perf/mem_peak": 0.48,
    }
    metrics: dict[str, float | None] = {}
    for key in METRIC_COLUMNS:
        metric = describe(key)
        never = key.startswith(("moe/", "kl_ref/")) or "probe" in metric.not_applicable
        no_critic = "critic" in metric.not_applicable and "ppo" not in algorithm
        metrics[key] = None if never or no_critic else shaped.get(metric.key, 0.1 + 0.01 * noise)
    return make_row(fields, metrics)


def _write_evals(
    folder: Path, study: StudySpec, rng: np.random.Generator, curve: np.ndarray, steps: int, done: int
) -> list[EvalRecord]:
    points = (
        [round(steps * k / study.eval.points) for k in range(1, study.eval.points + 1)] if study.eval.points else []
    )
    plan = [(0, "test"), (0, "validation"), *((p, "validation") for p in points), (steps, "test")]
    written = []
    for step, split in plan:
        if step > done:
            continue
        right = rng.random(QUESTIONS) < curve[step]
        record = EvalRecord(
            step=step, sampled_tokens_cum=step * TOKENS_PER_STEP, split=split, task=study.task.name, samples=1,
            score=float(right.mean()), reward_mean=float(right.mean()), length_mean=15.5, truncated=0.01,
            questions=tuple(QuestionScore(id=f"q{i}", n=1, correct=int(r)) for i, r in enumerate(right)),
        )  # fmt: skip
        append_line(folder / results.EVALS, to_json(record))
        written.append(record)
    return written


def _write_samples(folder: Path, rng: np.random.Generator, done: int) -> None:
    for step in sorted({1, max(1, done // 2), done}):
        for index in range(3):
            correct = bool(rng.random() < 0.5)
            record = SampleRecord(
                step=step, prompt_id=f"q{index}", sample=0, prompt="8 +3 +5 -2 ?", response="+3 1 +5 6 -2 4 # 4",
                tokens=9, reward=float(correct), correct=correct, extracted="4", why="right" if correct else "wrong",
                advantage=0.5 if correct else -0.5,
            )  # fmt: skip
            append_line(folder / results.SAMPLES, to_json(record))


def _result(spec: RunSpec, kind: str, rows: list[dict[str, Any]], evals: list[EvalRecord]) -> RunResult:
    last = rows[-1]
    tests = [e.score for e in evals if e.split == "test"]
    validation = [e.score for e in evals if e.split == "validation"]
    return RunResult(
        run_id=spec.run_id, status=kind, error="out of memory" if kind == "infra_failed" else None, steps=last["step"],
        optimizer_steps=last["optimizer_steps_cum"], sampled_tokens=last["sampled_tokens_cum"],
        trained_tokens=last["trained_tokens_cum"], wallclock_s=last["wallclock_s"],
        base_score=tests[0] if tests else None, final_score=tests[1] if len(tests) > 1 else None,
        best_validation=max(validation, default=None), peak_memory_mib=489.0, memory_after_import_mib=371.0,
        parameters=100_288, algorithm_resolved={"name": spec.algorithm, "siblings": 8, "ratio": {"kind": "token"}},
        deviations=tuple(f"{path}: preset -> {value}" for path, value in spec.overrides.items()),
        provenance=fake_provenance(),
    )  # fmt: skip


def fake_provenance() -> Provenance:
    """The same on every machine."""
    return Provenance(
        harness_version="0.1.0", numerics_version=1, git_commit="0" * 40, git_dirty=False, python="3.11.0",
        packages={"torch": "2.13.0", "numpy": "2.3.5"}, platform="Linux", cpu="a CPU", num_cpus=2,
        command=["harness", "compare"], started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00",
    )  # fmt: skip
