"""Checks across the runs of a study: what must be the same in all arms, budgets spent, the noise floor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal

from harness.core.results import EvalRecord, Finding, RunFolder
from harness.core.spec import StudySpec, dotted, nested
from harness.validity.limits import OVERSPENT_WARN

# Setting -> level where arms of one seed pair differ in it, and how it is called. The first part decides what is
# learned or measured; the second changes numbers by rounding at most, if at all.
SETTINGS: Mapping[str, tuple[Literal["WARN", "INVALID"], str]] = {
    "task": ("INVALID", "task"),
    "model": ("INVALID", "model"),
    "recipe": ("INVALID", "recipe"),
    "budget": ("INVALID", "budget"),
    "eval": ("INVALID", "evaluation"),
    "questions": ("INVALID", "evaluated questions"),
    "backend": ("INVALID", "backend"),
    "engine": ("INVALID", "rollout engine"),
    "start": ("INVALID", "start checkpoint"),
    "schedule": ("INVALID", "schedule"),
    "numerics_version": ("INVALID", "numerics version"),
    "tokenizer_sha256": ("INVALID", "tokenizer"),
    "template_sha256": ("INVALID", "prompt template"),
    "model_sha256": ("INVALID", "initial weights"),
    "packages": ("WARN", "packages"),
    "cpu": ("WARN", "CPU"),
    "gpu": ("WARN", "GPU"),
    "git_commit": ("WARN", "code commit"),
    "harness_version": ("WARN", "harness version"),
}
PER_SEED = ("model_sha256",)  # may differ from seed pair to seed pair: the cold start belongs to the seed
ENGINE = ("sampler", "dtype", "engine")  # settings of a backend that decide engine and precision of rollouts
SPECIFIED = ("task", "model", "recipe", "budget", "eval", "backend", "start", "schedule", "numerics_version")


def settings_of(run: RunFolder, study: StudySpec) -> dict[str, Any]:
    """Every setting of `SETTINGS`, None where it is not known; what an arm has for itself is no difference."""
    spec, shared = run.spec.model_dump(mode="json"), study.recipe.model_dump(mode="json")
    arm = next((arm for arm in study.arms if arm.name == run.spec.arm), None)
    own = {} if arm is None else arm.recipe
    apart = {} if arm is None else arm.backend
    found: dict[str, Any] = {key: spec[key] for key in SPECIFIED}
    found["recipe"] = spec["recipe"] | {key: shared[key] for key in own if key in shared}
    if arm is not None and arm.schedule:  # what stands behind the study's own entries is the arm's
        found["schedule"] = spec["schedule"][: -len(arm.schedule)]
    if apart:
        common = dotted(study.backend.model_dump(mode="json"))
        here = dotted(spec["backend"])
        found["backend"] = nested(here | {path: common[path] for path in apart if path in common})
    found["start"] = spec["start"] or "the model's own weights"
    found["questions"] = _questions(run.evals)
    if run.result is None:
        return found | {key: None for key in SETTINGS if key not in found}
    known = run.result.provenance.model_dump(mode="json")
    if any(path.split(".")[0] in ENGINE for path in apart):
        known["engine"] = None  # by design another one; `own_engines` tells
    if "dtype" in apart:
        known["model_sha256"] = None  # of the weights in that precision, so it is another one
    return found | {key: known[key] for key in SETTINGS if key not in found} | {"gpu": known["gpu"] or "none"}


def _questions(evals: Sequence[EvalRecord]) -> str | None:
    """Fingerprint of the final evaluation's question ids and sample counts."""
    last = [e for e in evals if e.split == "test" and len(e.asked)]
    if not last:
        return None
    record = max(last, key=lambda e: e.step)
    content = json.dumps(sorted(zip(record.asked.ids, record.asked.n, strict=True)))
    return f"{len(record.asked)} questions, {hashlib.sha256(content.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """What the checks across runs look at, of one finished run."""

    id: str
    arm: str
    seed: int
    settings: Mapping[str, Any]  # None: not recorded
    spent: float | None  # share of the budget; None where the run may end earlier (collapsed, or nothing to train)
    sampled_tokens: int
    trains: bool


def setups_of(spec: StudySpec, runs: Sequence[RunFolder]) -> tuple[RunSetup, ...]:
    """The finished runs whose scores may be compared: not failed for outside reasons, and valid by themselves."""
    found = []
    for run in runs:
        result = run.result
        if result is None or result.status == "infra_failed" or result.validity == "INVALID":
            continue
        updates = result.algorithm_resolved.get("updates")
        trains = not (isinstance(updates, dict) and updates.get("epochs") == 0)
        spent = run.spec.budget.fraction(result.sampled_tokens, result.steps)
        found.append(
            RunSetup(
                id=run.run_id,
                arm=run.spec.arm,
                seed=run.spec.seed,
                settings=settings_of(run, spec),
                spent=spent if trains and result.status != "collapsed" else None,
                sampled_tokens=result.sampled_tokens,
                trains=trains,
            )
        )
    return tuple(found)


def same_setting(setups: Sequence[RunSetup], key: str) -> Finding:
    """Arms of one seed pair must agree; a difference between seed pairs only is a warning, since pairs stay alike."""
    level, name = SETTINGS[key]
    known = [s for s in setups if s.settings.get(key) is not None]
    values = {s.id: _canonical(s.settings[key]) for s in known}
    torn = [seed for seed in {s.seed for s in known} if len({values[s.id] for s in known if s.seed == seed}) > 1]
    apart = len(set(values.values())) > 1
    say = partial(Finding, check=f"same {name}", limit="the same in all arms")
    if torn:
        return say(
            level=level,
            measured=_difference(known, key),
            why=f"Arms of seed {', '.join(map(str, sorted(torn)))} differ in more than their algorithm.",
            advice="Remove the folders of the odd runs and repeat the command, which runs them again.",
            runs=tuple(s.id for s in known if s.seed in torn),
        )
    if apart and key not in PER_SEED:
        return say(
            level="WARN",
            measured=_difference(known, key),
            why="Seed pairs differ; within each pair the arms are alike.",
            advice="Intervals over seeds include this difference.",
            runs=tuple(s.id for s in known),
        )
    if not known:
        return say(level="PASS", measured="not recorded", why="Nothing can be said.")
    measured = "the same within each seed pair" if apart else "the same in all runs"
    return say(level="PASS", measured=measured, why="It cannot explain a difference between arms.")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _difference(setups: Sequence[RunSetup], key: str) -> str:
    """`lr: 0.0003 (3 runs), 0.001 (1 run)`: only the fields that differ."""
    values = [s.settings[key] for s in setups]
    if all(isinstance(v, dict) for v in values):
        fields = dict.fromkeys(k for v in values for k in v)
        odd = [f for f in fields if len({_canonical(v.get(f)) for v in values}) > 1]
        return "; ".join(f"{f}: {_counted([v.get(f) for v in values])}" for f in odd)
    return _counted(values)


def _counted(values: Sequence[Any]) -> str:
    counts: dict[str, int] = {}
    for value in values:
        text = value if isinstance(value, str) else _canonical(value)
        short = text if len(text) <= 60 else text[:57] + "..."
        counts[short] = counts.get(short, 0) + 1
    return ", ".join(f"{text} ({n} run{'s' if n != 1 else ''})" for text, n in counts.items())


def budget_spent(setups: Sequence[RunSetup]) -> Finding:
    """Every arm must have spent its budget; collapsed runs and arms without training are exempt."""
    say = partial(Finding, check="budget spent")
    counted = [s for s in setups if s.spent is not None]
    short = [s for s in counted if (s.spent or 0.0) < 1.0]
    if short:
        more = f" and {len(short) - 4} more" if len(short) > 4 else ""
        return say(
            level="INVALID",
            limit="100 %",
            measured=", ".join(f"{s.arm} seed {s.seed}: {s.spent:.0%}" for s in short[:4]) + more,
            why="Runs that count as completed ended before their budget was spent.",
            advice="Remove their folders and repeat the command, which runs them again.",
            runs=tuple(s.id for s in short),
        )
    names = dict.fromkeys(s.arm for s in counted)
    means = {name: fmean(s.sampled_tokens for s in counted if s.arm == name) for name in names}
    if not means:
        return say(level="PASS", measured="no finished run", limit="100 %", why="Nothing can be said.")
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    measured = f"{means[least]:,.0f} to {means[most]:,.0f} sampled tokens per run"
    limit = f"a factor of {OVERSPENT_WARN:g}"
    if means[most] > OVERSPENT_WARN * means[least]:
        why = f"{most} sampled {means[most] / max(1.0, means[least]):.2g} times the tokens of {least}."
        advice = "Use a budget in sampled tokens (--tokens) that is large against one rollout batch."
        return say(level="WARN", measured=measured, limit=limit, why=why, advice=advice)
    return say(level="PASS", measured=measured, limit=limit, why="The arms sampled the same amount.")


def own_engines(spec: StudySpec) -> list[Finding]:
    """A warning where ranked arms have an engine or precision of their own; empty where all share one."""
    own = [arm for arm in spec.arms if arm.backend and arm.bracket != "control"]
    if not own:
        return []
    words = [f"{a.name}: {', '.join(f'{path} = {value}' for path, value in a.backend.items())}" for a in own]
    return [
        Finding(
            check="shared engine and precision",
            level="WARN",
            measured="; ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else ""),
            limit="the same in all arms",
            why="Arms that are compared sample or compute in different ways, as the study asks.",
            advice="Read a difference as one of algorithm and precision together; arms of one precision tell them "
            "apart.",
        )
    ]


def noise_floor(changes: Sequence[float], delta: float) -> Finding | None:
    """Score changes of runs at learning rate 0, which are noise by construction; None without such runs."""
    if not changes:
        return None
    largest = max(abs(c) for c in changes)
    say = partial(
        Finding,
        check="noise floor",
        measured=f"scores change by up to {largest:.3f} at learning rate 0 ({len(changes)} runs)",
        limit=f"{delta:g}",
        values={"largest": largest},
    )
    if largest >= delta:
        why = "The score of weights that never change moves by the smallest difference of interest or more."
        return say(level="WARN", why=why, advice="Score more questions, or use an engine that repeats itself.")
    return say(level="PASS", why="A larger change of a score is an effect of training, or of its seed.")


def judge(spec: StudySpec, runs: Sequence[RunFolder]) -> tuple[Finding, ...]:
    """All checks across the runs of a study."""
    setups = setups_of(spec, runs)
    found = [same_setting(setups, key) for key in SETTINGS]
    found.append(budget_spent(setups))
    found += own_engines(spec)
    floor = noise_floor([c for run in runs if (c := canary_change(run)) is not None], spec.delta)
    return (*found, floor) if floor is not None else tuple(found)


def canary_change(run: RunFolder) -> float | None:
    """Final score minus base score of a run at learning rate 0; None for every other run."""
    result = run.result
    if run.spec.recipe.lr != 0 or result is None or result.final_score is None or result.base_score is None:
        return None
    return result.final_score - result.base_score
