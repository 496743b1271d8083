"""A planted response behind the Executor port: run folders from a known score surface, without a model.

The score is a function of the resolved algorithm and recipe plus noise per seed and per run; beyond a cliff a run
starts faster than every other and then collapses. What an analysis or a search ought to find is therefore known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.core import results
from harness.core.algorithm import leaves
from harness.core.ports import RunHandle, RunState
from harness.core.resolve import resolve
from harness.core.results import EvalRecord, EventRecord, RunResult, to_json
from harness.core.spec import RunSpec
from tests.fakes.run_folders import fake_provenance

STEPS, TOKENS = 40, 4096
Leaves = Mapping[str, Any]  # dotted path -> value, with recipe.lr


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """E[score] = base + gain(leaves) + seed noise + run noise; a run with cliff(leaves) > 0 collapses."""

    gain: Callable[[Leaves], float]
    cliff: Callable[[Leaves], float] = lambda leaves: -1.0
    base: float = 0.4
    seed_sd: float = 0.02
    run_sd: float = 0.02
    draw: int = 0  # another one has other noise

    def score(self, spec: RunSpec) -> tuple[float, bool]:
        """Final score and whether the run collapses; the same for the same spec."""
        flat = flattened(spec)
        by_seed = np.random.default_rng([7, self.draw, spec.seed]).normal(0, self.seed_sd)
        own = np.random.default_rng([11, self.draw, int(spec.hash[:8], 16)]).normal(0, self.run_sd)
        return float(self.base + self.gain(flat) + by_seed + own), self.cliff(flat) > 0


def flattened(spec: RunSpec) -> dict[str, Any]:
    """What the surface sees of a run."""
    return {
        **leaves(resolve(spec)),
        "recipe.lr": spec.recipe.lr,
        "recipe.prompts_per_step": spec.recipe.prompts_per_step,
    }


@dataclass(slots=True, kw_only=True)
class PlantedExecutor:
    """Runs at most `parallel` at a time; `kill` says which attempt of which run dies.

    A run takes `polls` looks at it, and its evaluations appear one by one.
    """

    surface: Surface
    parallel: int = 4
    polls: int = 1
    kill: Callable[[str, int], bool] = lambda run_id, attempt: False
    attempts: dict[str, int] = field(default_factory=dict)  # run id -> times started
    _waiting: list[tuple[RunSpec, Path]] = field(default_factory=list)
    _running: list[tuple[RunSpec, Path]] = field(default_factory=list)
    _looks: dict[str, int] = field(default_factory=dict)
    _states: dict[str, RunState] = field(default_factory=dict)
    _handles: list[RunHandle] = field(default_factory=list)

    def submit(self, spec: RunSpec, folder: Path) -> RunHandle:
        self._states[spec.run_id] = "waiting"
        self._waiting.append((spec, folder))
        self._handles.append(RunHandle(run_id=spec.run_id, folder=folder))
        return self._handles[-1]

    def poll(self) -> Mapping[str, RunState]:
        kept = []
        for spec, folder in self._running:
            self._looks[spec.run_id] = looks = self._looks.get(spec.run_id, 0) + 1
            if looks % self.polls:
                folder.mkdir(parents=True, exist_ok=True)
                evals, _ = planted_evals(spec, self.surface)
                (folder / results.EVALS).write_text("".join(to_json(e) + "\n" for e in evals[: looks % self.polls + 1]))
                kept.append((spec, folder))
                continue
            attempt = self.attempts[spec.run_id]
            if self.kill(spec.run_id, attempt):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "log.txt").write_text(f"killed at attempt {attempt}\n")
                self._states[spec.run_id] = "failed"
            else:
                write_planted_run(folder, spec, self.surface)
                self._states[spec.run_id] = "done"
        fresh = [self._waiting.pop(0) for _ in range(min(self.parallel - len(kept), len(self._waiting)))]
        self._running = [*kept, *fresh]
        for spec, _ in fresh:
            self.attempts[spec.run_id] = self.attempts.get(spec.run_id, 0) + 1
            self._states[spec.run_id] = "running"
        return dict(self._states)

    def cancel(self, run_id: str) -> None:
        self._waiting = [(s, f) for s, f in self._waiting if s.run_id != run_id]
        self._running = [(s, f) for s, f in self._running if s.run_id != run_id]
        if self._states.get(run_id) in ("waiting", "running"):
            self._states[run_id] = "cancelled"

    def list(self) -> list[RunHandle]:
        return [*self._handles]

    def shutdown(self, patience_s: float) -> None:
        """Everything that has not ended is cancelled; a run under way is resumable, like a real one."""
        for spec, _ in (*self._waiting, *self._running):
            self._states[spec.run_id] = "cancelled"
        self._waiting, self._running = [], []


def planted_evals(spec: RunSpec, surface: Surface) -> tuple[list[EvalRecord], list[float]]:
    """The validation scores of a run from its start to its end: a fast start where it is going to collapse."""
    final, collapsed = surface.score(spec)
    fractions = [k / 5 for k in range(6)]
    top = final + 0.2 if collapsed else final
    speed = 12.0 if collapsed else 3.0
    curve = [0.2 + (top - 0.2) * (1 - math.exp(-speed * x)) for x in fractions]
    curve = [0.05 if collapsed and x > 0.6 else y for x, y in zip(fractions, curve, strict=True)]
    curve[-1] = 0.05 if collapsed else final
    return [_evaluation(spec, round(x * STEPS), "validation", y) for x, y in zip(fractions, curve, strict=True)], curve


def write_planted_run(folder: Path, spec: RunSpec, surface: Surface) -> None:
    """The files of a finished run, without fsync: a thousand of them take a second."""
    folder.mkdir(parents=True, exist_ok=True)
    collapsed = surface.score(spec)[1]
    evals, curve = planted_evals(spec, surface)
    evals += [_evaluation(spec, 0, "test", 0.2), _evaluation(spec, STEPS, "test", curve[-1])]
    event = EventRecord(
        type="reward_collapse", severity="COLLAPSE", onset_step=25, confirm_step=30, rule_id="reward_collapse"
    )  # fmt: skip
    (folder / results.SPEC).write_text(to_json(spec))
    (folder / results.EVALS).write_text("".join(to_json(e) + "\n" for e in evals))
    (folder / results.EVENTS).write_text(to_json(event) + "\n" if collapsed else "")
    (folder / results.RESULT).write_text(to_json(_result(spec, curve[-1], collapsed, max(curve))))


def _evaluation(spec: RunSpec, step: int, split: Any, score: float) -> EvalRecord:
    return EvalRecord(
        step=step, sampled_tokens_cum=step * TOKENS, split=split, task=spec.task.name, samples=1, score=score,
        reward_mean=score, length_mean=15.0, truncated=0.0, questions=(),
    )  # fmt: skip


def _result(spec: RunSpec, final: float, collapsed: bool, best: float) -> RunResult:
    return RunResult(
        run_id=spec.run_id, status="collapsed" if collapsed else "completed", steps=STEPS, optimizer_steps=4 * STEPS,
        sampled_tokens=STEPS * TOKENS, trained_tokens=STEPS * TOKENS, wallclock_s=1.0, base_score=0.2,
        final_score=final, best_validation=best, peak_memory_mib=500.0, memory_after_import_mib=400.0,
        parameters=1000, algorithm_resolved={}, deviations=(), provenance=fake_provenance(),
    )  # fmt: skip
