"""What a search must and must not do, over many simulated studies of a planted surface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from harness.core.ports import RunState
from harness.core.results import EVALS, RUNS, read_lines
from harness.core.search import Dimension, PrunerName, SearchRecord
from harness.study.compare import plan_runs
from harness.study.sampling import FLOOR, distribution
from harness.study.spaces import arm_of
from harness.study.tune import Search, ranked, run_trials, trial_study
from tests.fakes.planted import Leaves, PlantedExecutor, Surface
from tests.study.surfaces import cliff, journal, peak, record

MOST = 40  # trials after which a search counts as having missed the optimum
OPTIMUM = 0.7
WIDE = (
    Dimension(path="recipe.lr", low=3e-5, high=3e-3, log=True),
    Dimension(path="surrogate.low", low=0.02, high=0.5, log=True),
    Dimension(path="surrogate.high", low=0.02, high=0.5, log=True),
    Dimension(path="updates.mini_batches", values=(2, 4, 8)),
)


def bowl(flat: Leaves) -> float:
    """Best, .3, at lr 1e-3, clip ranges of .1 and eight mini-batches; the defaults reach .1."""
    away = (math.log10(flat[p] / best) ** 2 for p, best in (("surrogate.low", 0.1), ("surrogate.high", 0.1)))
    return (
        0.3
        - 0.35 * math.log10(flat["recipe.lr"] / 1e-3) ** 2
        - 0.25 * sum(away)
        - 0.04 * (flat["updates.mini_batches"] != 8)
    )


def near_optimum(flat: Leaves) -> bool:
    """Whether a configuration reaches 95 % of the optimum, without noise and without collapse."""
    return cliff(flat) <= 0 and 0.4 + bowl(flat) >= 0.95 * OPTIMUM


def ours(folder: Path, study: int) -> int:
    """Trials of a real search until the first near the optimum."""
    plan = record(trials=MOST, space=WIDE, sampler_seed=1000 * study)
    folder.mkdir(parents=True)
    search = Search(journal(folder), folder, plan, plan.searched[0])
    found: list[int] = []

    def watch(s: Search, states: Mapping[str, RunState]) -> None:
        found[:] = [t.number for t in s.complete if near_optimum(t.params)]
        if found:
            raise KeyboardInterrupt

    executor = PlantedExecutor(surface=Surface(gain=bowl, cliff=cliff, draw=study), parallel=2)
    run_trials(search, executor, 2, watch, pause_s=0.0)
    return min(found, default=MOST) + 1


def plain(folder: Path, study: int) -> int:
    """Trials of Optuna's TPE, as it comes, on the same surface with the same noise."""
    plan = record(trials=MOST, space=WIDE)
    template, recipe = trial_study(plan, plan.searched[0]), plan.final.recipe
    surface = Surface(gain=bowl, cliff=cliff, draw=study)
    loop = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=study))
    for number in range(MOST):
        trial = loop.ask({d.path: distribution(d) for d in WIDE})
        if near_optimum(trial.params):
            return number + 1
        arm = arm_of(plan.searched[0].arm, trial.params, "x", recipe)
        runs = plan_runs(template.model_copy(update={"arms": (arm,), "reference_arm": arm.name}), folder)
        outcomes = [surface.score(r.spec) for r in runs]
        loop.tell(trial, float(np.mean([0.05 if collapsed else score for score, collapsed in outcomes])))
    return MOST + 1


def compare(folder: Path, num: int) -> tuple[float, float]:
    """Median numbers of trials, ours and the plain loop's."""
    mine = [ours(folder / str(i), i) for i in range(num)]
    theirs = [plain(folder / "plain", i) for i in range(num)]
    return float(np.median(mine)), float(np.median(theirs))


def test_a_search_finds_the_optimum_about_as_fast_as_a_plain_loop(tmp_path: Path) -> None:
    mine, theirs = compare(tmp_path, 4)
    assert mine <= 1.6 * theirs, "four studies only; the slow test has the bound"


@pytest.mark.slow
def test_a_search_needs_at_most_a_tenth_more_trials_than_a_plain_loop(tmp_path: Path) -> None:
    mine, theirs = compare(tmp_path, 200)
    assert mine <= 1.1 * theirs, (mine, theirs)


def winners(folder: Path, num: int, pruner: PrunerName, trials: int) -> tuple[int, int, int]:
    """Studies; those in which a collapsing configuration led after two fifths of the budget; those that it won."""
    led = won = 0
    for study in range(num):
        plan = record(trials=trials, sampler_seed=1000 * study, pruner=pruner)
        place = folder / str(study)
        place.mkdir(parents=True)
        search = Search(journal(place), place, plan, plan.searched[0])
        executor = PlantedExecutor(surface=Surface(gain=peak, cliff=cliff, draw=study), parallel=4, polls=5)
        run_trials(search, executor, 4, lambda s, states: None, pause_s=0.0)
        check_pruned(search, plan)
        early = {t.number: early_score(place, t.user_attrs["runs"]) for t in search.complete}
        collapsed = {t.number for t in search.complete if t.user_attrs["collapsed"]}
        led += max(early, key=lambda n: early[n]) in collapsed
        best = ranked(search.complete, plan.objectives)
        won += cliff(best[0].params) > 0 or search.study.best_trial.number in collapsed
    return num, led, won


def early_score(place: Path, runs: list[str]) -> float:
    """Mean validation score at two fifths of the budget."""
    return float(np.mean([[*read_lines(place / "grpo" / RUNS / r / EVALS)][2]["score"] for r in runs]))


def check_pruned(search: Search, plan: SearchRecord) -> None:
    """Never before the floor, always with the reason."""
    for trial in search.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
        assert trial.user_attrs["pruned_at"] >= FLOOR
        assert trial.user_attrs["prune_reason"] == plan.pruner
        assert max(trial.intermediate_values) == trial.user_attrs["pruned_at"]


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_fast_start_that_collapses_wins_nowhere(tmp_path: Path, pruner: PrunerName) -> None:
    _, led, won = winners(tmp_path, 4, pruner, 12)
    assert led > 0, "somewhere it was ahead early"
    assert won == 0


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "median", "halving"])
def test_a_fast_start_that_collapses_wins_in_none_of_200_studies(tmp_path: Path, pruner: PrunerName) -> None:
    _, led, won = winners(tmp_path, 200, pruner, 20)
    assert led > 100
    assert won == 0


def test_a_pruner_stops_what_lags_and_counts_it(tmp_path: Path) -> None:
    plan = record(trials=16, pruner="median", tuning_seeds=(1000,))
    search = Search(journal(tmp_path), tmp_path, plan, plan.searched[0])
    executor = PlantedExecutor(surface=Surface(gain=peak, cliff=cliff), parallel=2, polls=5)
    run_trials(search, executor, 2, lambda s, states: None, pause_s=0.0)
    pruned = search.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    assert pruned
    assert len(pruned) + len(search.complete) == 16
    check_pruned(search, plan)
    scores = [t.user_attrs["reason"] for t in pruned]
    assert all(f"at {t.user_attrs['pruned_at']} % of the budget" in r for t, r in zip(pruned, scores, strict=True))
    best = max(search.complete, key=lambda t: t.value or 0.0)
    assert best.value is not None
    assert replace(Surface(gain=peak), run_sd=0.0).base + peak(best.params) > 0.6, "what was left is good"
