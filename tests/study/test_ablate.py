"""Ablations on a planted response: cells as trials, going on after a kill, and what the report finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from harness.core.ablation import TRIALS, Trials, write_ablation
from harness.core.errors import UsageError
from harness.core.results import RUNS
from harness.core.spec import BackendSpec
from harness.models.recipes import held_out, recipe
from harness.report.ablation import analyse
from harness.report.ablation_page import terminal, write_ablation_report
from harness.study.ablate import CellTrials
from harness.study.build import Choices, Planned, build, run_specs
from harness.study.compare import plan_runs, prepare_folder, run_study
from harness.study.trials import controller, default_storage, open_storage
from tests.fakes.planted import Leaves, PlantedExecutor, Surface, flattened

SMALL = Choices(preset="dapo", kind="ablations", seeds=(0, 1, 2), budget={"steps": 3}, name="cube")


def gain(flat: Leaves) -> float:
    """clip_higher .10, dynamic sampling -.04, token loss 0, overlong .02; the first two together .06 more."""
    clip = flat["surrogate.high"] > 0.25
    dynamic = flat["admission"] == "mixed"
    return 0.1 * clip - 0.04 * dynamic + 0.02 * ("overlong" in flat["rewards"]) + 0.06 * (clip and dynamic)


PLANTED = {("clip_higher",): 0.13, ("dynamic_sampling",): -0.01, ("token_loss",): 0.0, ("overlong",): 0.02}
CROSSED = {("clip_higher", "dynamic_sampling"): 0.06}


def planned(**changes: Any) -> Planned:
    return build(replace(SMALL, **changes), recipe, held_out, lambda spec: BackendSpec(threads=1))


def run(results: Path, surface: Surface, kill: Callable[[str, int], bool] | None = None, **changes: Any) -> Path:
    """One command: plan, ask, run, tell."""
    found = planned(**changes)
    folder = results / found.spec.name
    url = default_storage(folder)
    assert found.ablation is not None
    with controller(url):
        prepare_folder(found.spec, results)
        write_ablation(folder, found.ablation)
        runs = plan_runs(found.spec, folder)
        trials = CellTrials(url, found.spec.name, found.ablation, runs)
        trials.write(folder)
        trials.settle({})
        executor = PlantedExecutor(surface=surface, parallel=1000)
        if kill is not None:
            executor.kill = kill
        run_study(runs, folder, executor, None, trials.settle)
    return folder


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=None, storage=open_storage(default_storage(folder))).get_trials()


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("results"), Surface(gain=gain))


def test_every_cell_is_one_complete_trial_that_names_its_runs(cube: Path) -> None:
    trials = trials_of(cube)
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len(trials) == len({tuple(t.params.values()) for t in trials}) == 16
    for trial in trials:
        runs = trial.user_attrs["runs"]
        assert len(runs) == 3
        assert all((cube / RUNS / r).is_dir() for r in runs)
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["test"]))
        assert trial.user_attrs["setting"] == trial.params
    numbers = Trials.model_validate_json((cube / TRIALS).read_text()).trials
    assert numbers == {t.user_attrs["arm"]: t.number for t in trials}


def test_the_report_finds_what_was_planted(cube: Path) -> None:
    data = analyse(cube)
    for effect in data["fits"]["score"]["effects"]:
        planted = {**PLANTED, **CROSSED}.get(tuple(effect["factors"]), 0.0)
        assert effect["value"] == pytest.approx(planted, abs=0.025)
    clip = data["effects"][0]
    assert (clip["factor"], clip["interaction"]["factors"]) == ("clip_higher", ("clip_higher", "dynamic_sampling"))
    assert clip["score"]["p_adjusted"] < 0.001
    shapley = {s["factor"]: s["value"] for s in data["shapley"]}
    assert shapley["clip_higher"] == pytest.approx(0.13, abs=0.03)
    assert sum(shapley.values()) == pytest.approx(_gain_of_all(data), abs=1e-9)
    single = {s["factor"]: s for s in data["single"]}
    difference = single["clip_higher"]["leave_one_out"]["value"] - single["clip_higher"]["add_one_in"]["value"]
    assert difference == pytest.approx(0.06, abs=0.05), "they disagree by the interaction"
    paths = write_ablation_report(cube)
    page = paths["effects"].read_text()
    assert "clip_higher: with" in page
    assert "Shapley value" in page
    assert "clip_higher" in terminal(data)
    drawn = {p.stem for p in paths["ablation_figures"].glob("*.png")}
    assert drawn == {"effects", "interactions", "components", "cells"}
    html = paths["ablation_html"].read_text()
    assert html.count("<svg") == len(drawn)
    assert html.count("<script") == 1, "that of every page, which sorts tables"


def _gain_of_all(data: dict[str, Any]) -> float:
    score = {c["arm"]: c["score"]["value"] for c in data["cells"]}
    return float(score["clip_higher + dynamic_sampling + token_loss + overlong"] - score["core"])


def test_a_killed_controller_and_killed_workers_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    """The controller dies after the asks; then a third of the runs die once; then the command is repeated."""
    found = planned()
    assert found.ablation is not None
    folder = tmp_path / "cube"
    with controller(default_storage(folder)):
        CellTrials(default_storage(folder), "cube", found.ablation, plan_runs(found.spec, folder))
    assert {t.state for t in trials_of(folder)} == {TrialState.RUNNING}
    doomed = {r.run_id for i, r in enumerate(run_specs(found.spec)) if i % 7 == 0}
    run(tmp_path, Surface(gain=gain), kill=lambda run_id, attempt: run_id in doomed)
    states = [t.state for t in trials_of(folder)]
    assert states.count(TrialState.FAIL) == len(_arms(found, doomed))
    run(tmp_path, Surface(gain=gain))
    complete = [t for t in trials_of(folder) if t.state == TrialState.COMPLETE]
    assert len(complete) == len({t.user_attrs["arm"] for t in complete}) == 16
    assert not [t for t in trials_of(folder) if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    before = len(trials_of(folder))
    run(tmp_path, Surface(gain=gain))
    assert len(trials_of(folder)) == before, "all is done"


def _arms(found: Planned, doomed: set[str]) -> set[str]:
    return {r.arm for r in run_specs(found.spec) if r.run_id in doomed}


def test_a_second_controller_and_another_design_are_refused(cube: Path, tmp_path: Path) -> None:
    with (
        controller(default_storage(cube)),
        pytest.raises(UsageError, match="another command is using it"),
        controller(default_storage(cube)),
    ):
        pass
    copy = tmp_path / "cube"
    shutil.copytree(cube, copy)
    with pytest.raises(UsageError, match="another --name"):
        run(tmp_path, Surface(gain=gain), design={"kind": "leave_one_out"})


def test_collapse_counts_with_its_real_score_and_violates_the_constraint(tmp_path: Path) -> None:
    surface = Surface(gain=gain, cliff=lambda flat: 1.0 if flat["admission"] == "mixed" else -1.0)
    folder = run(tmp_path, surface, design={"kind": "leave_one_out"})
    trials = trials_of(folder)
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert {t.user_attrs["outcome"] for t in trials} == {"collapsed", "completed"}
    assert all((t.constraints["collapse"] > 0) == (t.user_attrs["collapsed"] > 0) for t in trials)
    assert all(t.value == pytest.approx(0.05) for t in trials if t.user_attrs["collapsed"])
    data = analyse(folder)
    row = next(e for e in data["effects"] if e["factor"] == "dynamic_sampling")
    assert (row["collapse"]["k"], row["collapse"]["k_reference"]) == (12, 0)
    assert any("collapsed" in n for n in data["notes"])
    assert set(next(iter(trials)).params) == {"cell"}, "no product: a grid over the cells"


def test_planted_effects_lie_in_their_intervals_at_the_nominal_rate() -> None:
    """200 simulated studies of the DAPO cube: the real cells, the real analysis, the surface alone in place of runs."""
    from harness.stats.effects import fit_effects

    found = planned()
    assert found.ablation is not None
    runs = run_specs(found.spec)
    means = np.array([gain(flattened(r)) for r in runs])
    settings, seeds = [found.ablation.cells[r.arm] for r in runs], [r.seed for r in runs]
    factors = {f.name: [level.name for level in f.levels] for f in found.ablation.design.factors}
    rng = np.random.default_rng(0)
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(200):
        noise = rng.normal(0, 0.02, 3)[seeds] + rng.normal(0, 0.02, len(runs))
        for e in fit_effects(factors, settings, seeds, means + noise).effects:
            target = {**PLANTED, **CROSSED}.get(e.factors, 0.0)
            hits[len(e.factors) == 1].append(e.low <= target <= e.high)
    assert all(0.92 <= np.mean(h) <= 0.98 for h in hits.values())
    assert len([*product("ab", repeat=4)]) == len(found.spec.arms)
