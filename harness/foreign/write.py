"""A run made elsewhere -> a run folder of a study."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import NUMERICS_VERSION, __version__
from harness.core.errors import UsageError
from harness.core.metrics import make_row
from harness.core.results import (
    EVALS,
    EVENTS,
    RESULT,
    RUNS,
    SPEC,
    STEPS,
    STUDY,
    EvalRecord,
    Finding,
    Provenance,
    RunResult,
    RunStatus,
    dumps,
    read_study_spec,
    to_json,
    write_atomic,
    write_study_spec,
)
from harness.core.spec import ArmSpec, Bracket, Budget, ModelSpec, Recipe, RunSpec, StudySpec, TaskSpec
from harness.foreign.mapping import OWN, split
from harness.foreign.sources import READERS, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is imported, and what its log does not say."""

    source: Path
    library: str
    study: Path
    arm: str
    algorithm: str
    seed: int
    bracket: Bracket = "outcome"
    score: str | None = None  # key of the held-out share of right answers
    responses: int | None = None  # sampled per step
    updates: int = 1  # optimizer steps per rollout batch
    status: RunStatus = "completed"
    task: str | None = None  # of a study that does not exist yet
    model: str | None = None
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was written, which keys were taken, and why others were not."""

    folder: Path
    steps: int
    evaluations: int
    taken: Mapping[str, str]
    left: Mapping[str, str]


def import_run(wanted: Wanted) -> Imported:
    """Writes the run folder and names its arm and seed in the study."""
    rows = READERS[wanted.library](wanted.source)
    keys = list(dict.fromkeys(k for row in rows for k in row if k not in ("step", wanted.score)))
    taken, left = split(wanted.library, keys)
    steps, scores = _steps(wanted, rows, taken), _scores(wanted, rows)
    if not steps:
        raise UsageError(f"{wanted.source}: no row after step 0", "there is no training to import", "the whole log")
    study = _study(wanted, steps)
    evals = _evals(study.task.name, scores, steps)
    spec = _spec(wanted, study)
    folder = wanted.study / RUNS / spec.run_id
    if folder.exists():
        raise UsageError(f"{folder}: exists", f"arm {wanted.arm} has a run of seed {wanted.seed} already",
                         "another --seed or --arm, or remove that folder")  # fmt: skip
    finding = _finding(wanted, left)
    folder.mkdir(parents=True)
    write_study_spec(wanted.study, study)
    write_atomic(folder / SPEC, to_json(spec))
    write_atomic(folder / STEPS, "".join(dumps(row) + "\n" for row in steps))
    write_atomic(folder / EVALS, "".join(to_json(e) + "\n" for e in evals))
    write_atomic(folder / EVENTS, "")
    write_atomic(folder / RESULT, to_json(_result(wanted, spec, steps, evals, finding)))
    return Imported(folder=folder, steps=len(steps), evaluations=len(scores), taken=taken, left=left)


def _steps(wanted: Wanted, rows: Sequence[Row], taken: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of steps.jsonl; TRL and verl count optimizer steps or batches, a CSV says what it has."""
    found: list[dict[str, Any]] = []
    spent, before, seconds = 0.0, 0.0, 0.0
    for row in (r for r in rows if r["step"] > 0):
        ours = {taken[k]: v for k, v in row.items() if k in taken}
        batches = (row["step"] - before) / wanted.updates
        before = row["step"]
        if "sampled_tokens_cum" in ours:
            spent = ours["sampled_tokens_cum"]
        elif wanted.responses is not None and "len/mean" in ours:
            spent += batches * wanted.responses * ours["len/mean"]
        seconds = ours.get("wallclock_s", seconds + batches * ours.get("perf/t_step", 0.0))
        step = max(1, round(row["step"] / wanted.updates))
        fields = {
            "step": step, "optimizer_steps_cum": int(ours.get("optimizer_steps_cum", step * wanted.updates)),
            "sampled_tokens_cum": round(spent), "trained_tokens_cum": int(ours.get("trained_tokens_cum", spent)),
            "prompts_cum": int(ours.get("prompts_cum", 0)), "wallclock_s": seconds,
            "budget_fraction": ours.get("budget_fraction"), "lr": ours.get("lr"),
        }  # fmt: skip
        fresh = make_row(fields, {k: v for k, v in ours.items() if k not in OWN})
        found = _with(found, fresh)
    if found and not found[-1]["sampled_tokens_cum"]:
        raise UsageError(
            f"{wanted.source}: the sampled tokens are unknown", "they are the budget on which arms are compared",
            "--responses N, the responses sampled per step, or a column sampled_tokens_cum",
        )  # fmt: skip
    return found


def _with(found: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The last row of a rollout batch stands for it."""
    if found and found[-1]["step"] == row["step"]:
        found[-1] = row
    else:
        found.append(row)
    return found


def _scores(wanted: Wanted, rows: Sequence[Row]) -> dict[int, float]:
    """Step -> held-out score."""
    if wanted.score is None:
        return {}
    found = {max(0, round(r["step"] / wanted.updates)): r[wanted.score] for r in rows if wanted.score in r}
    if not found:
        known = sorted({k for r in rows for k in r if k != "step"})
        raise UsageError(f"--score {wanted.score}", "no entry of the log has it", f"one of: {', '.join(known)}")
    wrong = [v for v in found.values() if not 0 <= v <= 1]
    if wrong:
        raise UsageError(f"--score {wanted.score}", f"it holds {wrong[0]:g}, and a score is the share of right answers",
                         "a key between 0 and 1; a shaped reward is no score")  # fmt: skip
    return found


def _evals(task: str, scores: Mapping[int, float], steps: Sequence[dict[str, Any]]) -> list[EvalRecord]:
    """Every score as validation; the first at step 0 and the last also as the test before and after training."""
    tokens = {0: 0} | {row["step"]: row["sampled_tokens_cum"] for row in steps}
    lengths = {row["step"]: row["len/mean"] for row in steps}
    end = max(scores, default=0)
    found = []
    for step, score in sorted(scores.items()):
        at = max(s for s in tokens if s <= step)
        for split_name in ("test", "validation") if step in (0, end) else ("validation",):
            found.append(EvalRecord(
                step=step, sampled_tokens_cum=tokens[at], split=split_name, task=task, samples=1, score=score,
                reward_mean=score, length_mean=lengths.get(step), truncated=None, questions=(),
            ))  # fmt: skip
    return found


def _study(wanted: Wanted, steps: Sequence[dict[str, Any]]) -> StudySpec:
    """The study with this arm and seed in it; a new one where there is none."""
    arm = ArmSpec(name=wanted.arm, algorithm=wanted.algorithm, bracket=wanted.bracket)
    if not (wanted.study / STUDY).exists():
        if wanted.task is None or wanted.model is None:
            raise UsageError(
                f"{wanted.study}: no such study, and no --task and --model",
                "a study says what its runs were trained on", "both, or the folder of a study",
            )  # fmt: skip
        return StudySpec(
            name=wanted.study.resolve().name, task=TaskSpec(name=wanted.task), model=ModelSpec(name=wanted.model),
            recipe=Recipe(), budget=Budget(sampled_tokens=steps[-1]["sampled_tokens_cum"]), arms=(arm,),
            seeds=(wanted.seed,), reference_arm=wanted.arm,
        )  # fmt: skip
    study = read_study_spec(wanted.study)
    same = next((a for a in study.arms if a.name == arm.name), None)
    if same is not None and (same.algorithm, same.bracket) != (arm.algorithm, arm.bracket):
        raise UsageError(f"--arm {arm.name}", f"the study has it as {same.algorithm} in bracket {same.bracket}",
                         "another name, e.g. the algorithm and the library")  # fmt: skip
    arms = study.arms if same is not None else (*study.arms, arm)
    seeds = study.seeds if wanted.seed in study.seeds else (*study.seeds, wanted.seed)
    return study.model_copy(update={"arms": arms, "seeds": seeds})


def _spec(wanted: Wanted, study: StudySpec) -> RunSpec:
    shared = {k: getattr(study, k) for k in ("task", "model", "recipe", "budget", "eval", "backend", "schedule")}
    return RunSpec(numerics_version=NUMERICS_VERSION, arm=wanted.arm, algorithm=wanted.algorithm,
                   bracket=wanted.bracket, seed=wanted.seed, **shared)  # fmt: skip


def _finding(wanted: Wanted, left: Mapping[str, str]) -> Finding:
    """The flag that such a run carries through every report."""
    reasons: dict[str, list[str]] = {}
    for key, why in left.items():
        reasons.setdefault(why, []).append(key)
    words = "; ".join(f"{', '.join(keys)}: {why}" for why, keys in reasons.items()) or "none"
    return Finding(
        check="imported", level="WARN", measured=f"{wanted.source.name}, by {wanted.library}",
        limit="runs of this harness",
        why="The run was made elsewhere: task, model, recipe and evaluation are those of the study by the word of "
            f"whoever imported it, and it shares no sampling noise with the other arms. Quantities left out: {words}.",
        advice="Compare scores only as far as both were evaluated alike.",
    )  # fmt: skip


def _result(
    wanted: Wanted, spec: RunSpec, steps: Sequence[dict[str, Any]], evals: Sequence[EvalRecord], finding: Finding
) -> RunResult:
    last, tests = steps[-1], [e for e in evals if e.split == "test"]
    trained = [e.score for e in evals if e.split == "validation" and e.step > 0]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunResult(
        run_id=spec.run_id, status=wanted.status, validity="WARN", validity_reasons=(finding.reason,),
        validity_findings=(finding,), steps=last["step"], optimizer_steps=last["optimizer_steps_cum"],
        sampled_tokens=last["sampled_tokens_cum"], trained_tokens=last["trained_tokens_cum"],
        wallclock_s=last["wallclock_s"], base_score=tests[0].score if tests and tests[0].step == 0 else None,
        final_score=tests[-1].score if tests and tests[-1].step > 0 else None,
        best_validation=max(trained, default=None), peak_memory_mib=None, memory_after_import_mib=None,
        parameters=wanted.parameters, algorithm_resolved={}, deviations=(),
        provenance=Provenance(
            harness_version=f"{__version__} (imported from {wanted.library})", numerics_version=NUMERICS_VERSION,
            python=platform.python_version(), packages={}, platform="imported", cpu="not recorded", num_cpus=0,
            started=now, finished=now,
        ),
    )  # fmt: skip
