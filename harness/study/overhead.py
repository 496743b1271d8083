"""What a search costs beside its runs: seconds per trial at a thousand finished trials, and to continue such a study.

Runs end at once with a result from a formula, so that nothing but the controller and its storage is measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from harness.core import results
from harness.core.ports import RunHandle, RunState
from harness.core.provenance import collect
from harness.core.results import EvalRecord, RunResult, to_json
from harness.core.search import Searched, SearchRecord
from harness.core.spec import BackendSpec, RunSpec
from harness.study.build import Choices, build
from harness.study.sampling import distribution
from harness.study.spaces import space_of
from harness.study.trials import controller, default_storage
from harness.study.tune import Search, run_trials

FINISHED, MEASURED = 1000, 20
TARGETS = {"ms per trial": 50.0, "s to resume": 5.0}


Lookup = Callable[[str], Mapping[str, Any]]  # of a model's recipe, of its held-out sizes


class Instant:
    """An executor whose runs have ended when they are looked at."""

    def __init__(self) -> None:
        self._states: dict[str, RunState] = {}
        self._provenance = collect([])
        self.seconds = 0.0  # spent on writing results, not the controller's

    def submit(self, spec: RunSpec, folder: Path) -> RunHandle:
        """Writes the files of a finished run."""
        begin = time.perf_counter()
        score = _score(spec.recipe.lr)
        evaluation = EvalRecord(
            step=10, sampled_tokens_cum=1000, split="validation", task=spec.task.name, samples=1, score=score,
            reward_mean=score, length_mean=10.0, truncated=0.0, questions=(),
        )  # fmt: skip
        result = RunResult(
            run_id=spec.run_id, status="completed", steps=10, optimizer_steps=40, sampled_tokens=1000,
            trained_tokens=1000, wallclock_s=1.0, base_score=0.2, final_score=score, best_validation=score,
            peak_memory_mib=500.0, memory_after_import_mib=400.0, parameters=1000, algorithm_resolved={},
            deviations=(), provenance=self._provenance,
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / results.SPEC).write_text(to_json(spec))
        (folder / results.EVALS).write_text(to_json(evaluation) + "\n")
        (folder / results.RESULT).write_text(to_json(result))
        self._states[spec.run_id] = "done"
        self.seconds += time.perf_counter() - begin
        return RunHandle(run_id=spec.run_id, folder=folder)

    def poll(self) -> Mapping[str, RunState]:
        return dict(self._states)

    def cancel(self, run_id: str) -> None:
        """Nothing is under way."""

    def list(self) -> list[RunHandle]:
        return []


def run_overhead(rounds: int, recipe: Lookup, held_out: Lookup) -> dict[str, float]:
    """Medians over rounds, each with a study of its own."""
    plan = _record(recipe, held_out)
    found = [_round(plan) for _ in range(rounds)]
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def _round(plan: SearchRecord) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = default_storage(folder)
        with controller(url):
            search = Search(url, folder, plan, plan.searched[0])
            _run(search)
            _fill(search.study, plan)
            more = plan.model_copy(update={"trials": FINISHED + MEASURED})
            begin = time.perf_counter()
            search = Search(url, folder, more, more.searched[0])
            search.wants()
            resumed = time.perf_counter() - begin
            spent = _run(search)
            begin = time.perf_counter()
            search.write()  # once per command, at its end
            written = time.perf_counter() - begin
            each = 1000 * (spent - written) / MEASURED
            return {"ms per trial": each, "s to resume": resumed, "s to write the trials at the end": written}


def _run(search: Search) -> float:
    """Seconds of the controller."""
    executor = Instant()
    begin = time.perf_counter()
    run_trials(search, executor, 1, lambda s, states: None, pause_s=0.0)
    return time.perf_counter() - begin - executor.seconds


def _record(recipe: Lookup, held_out: Lookup) -> SearchRecord:
    choices = Choices(preset="quick", arms=("grpo",), seeds=(0,), budget={"steps": 3})
    spec = build(choices, recipe, held_out, lambda s: BackendSpec(threads=1)).spec
    arm = spec.arms[0]
    searched = Searched(arm=arm, space=space_of(arm, spec.recipe), folder="grpo", optuna_study="bench/grpo")
    return SearchRecord(
        name="bench", final=spec, searched=(searched,), tuning_seeds=(1000,), trials=3, sampler="tpe", top=1
    )


def _fill(study: optuna.Study, plan: SearchRecord) -> None:
    """Finished trials at random points up to a thousand, with the attributes that a real one has."""
    done = study.get_trials(deepcopy=False)
    space = {d.path: distribution(d) for d in plan.searched[0].space}
    random = optuna.samplers.RandomSampler(seed=0)
    pattern: dict[str, Any] = dict(done[-1].user_attrs)
    for number in range(len(done), FINISHED):
        params = {path: random.sample_independent(study, done[-1], path, d) for path, d in space.items()}
        mine = {**pattern, "arm": f"trial {number}"}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=_score(params["recipe.lr"]),
                                            user_attrs=mine))  # fmt: skip


def _score(lr: float) -> float:
    return 0.5 - 0.1 * float(np.log10(lr / 1e-3) ** 2)


def lines(found: Mapping[str, float]) -> str:
    """The measured values beside their targets."""
    words = [f"{value:.3g} {key}" + (f" (target: at most {TARGETS[key]:g})" if key in TARGETS else "")
             for key, value in found.items()]  # fmt: skip
    return "\n".join(f"controller, {FINISHED:,} finished trials, sqlite: {w}" for w in words)
