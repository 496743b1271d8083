"""Searches on a planted response: what is found, what never wins, and what a kill does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.core.results import RUNS, read_study
from harness.core.search import SearchRecord, write_search
from harness.core.spec import BackendSpec
from harness.models.recipes import held_out, recipe
from harness.report.tuning import build as tuning_data
from harness.report.tuning import markdown, terminal, write_tuning
from harness.study.build import build, parse_value
from harness.study.compare import plan_runs, prepare_folder, run_study
from harness.study.evidence import RunFacts
from harness.study.importance import importances
from harness.study.spaces import arm_of, defaults, parse_dimension, space_of
from harness.study.trials import controller, default_storage
from harness.study.tune import (
    Limits,
    Search,
    check_search,
    constraints,
    final_rows,
    final_study,
    ranked,
    run_trials,
    trial_rows,
)
from tests.fakes.planted import PlantedExecutor, Surface
from tests.study.surfaces import SMALL, SPACE, cliff, journal, peak, record


def search_of(folder: Path, plan: SearchRecord, url: str | None = None) -> Search:
    return Search(url or journal(folder), folder, plan, plan.searched[0])


def run(
    folder: Path, plan: SearchRecord, executor: PlantedExecutor, url: str | None = None, stop: int = 10**6
) -> Search:
    """One command; interrupted when `stop` trials are complete."""
    with controller(url or journal(folder)):
        write_search(folder, plan)
        search = search_of(folder, plan, url)

        def watch(s: Search, states: Mapping[str, RunState]) -> None:
            if len(s.complete) >= stop:
                raise KeyboardInterrupt

        run_trials(search, executor, executor.parallel, watch, pause_s=0.0)
        return search


def planted(**changes: Any) -> PlantedExecutor:
    return PlantedExecutor(surface=Surface(gain=peak, cliff=cliff), **{"parallel": 2, **changes})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchRecord, Search]:
    folder = tmp_path_factory.mktemp("results") / "t"
    plan = record(trials=20)
    return folder, plan, run(folder, plan, planted())


def test_the_defaults_come_first_and_the_search_beats_them(found: tuple[Path, SearchRecord, Search]) -> None:
    _, plan, search = found
    trials = search.complete
    assert len(trials) == 20
    assert trials[0].params == defaults(plan.searched[0].arm, SPACE, plan.final.recipe)
    assert [t.user_attrs.get("what") for t in trials[:3]] == ["defaults", "lr x 0.33", "lr x 3"]
    best = ranked(trials, plan.objectives)[0]
    assert best.value is not None
    assert trials[0].value is not None
    assert best.value > trials[0].value + 0.05
    assert best.value > 0.62, "0.7 at the optimum"
    assert best.number == search.study.best_trial.number, "the constraint is Optuna's own"


def test_a_fast_start_that_collapses_is_complete_and_never_wins(found: tuple[Path, SearchRecord, Search]) -> None:
    _, plan, search = found
    collapsed = [t for t in search.complete if t.user_attrs["collapsed"]]
    assert collapsed, "the cliff was met"
    assert {t.state for t in search.study.get_trials()} == {TrialState.COMPLETE}
    assert all(t.constraints["collapse"] > 0 and t.value == pytest.approx(0.05) for t in collapsed)
    assert all(t.params["recipe.lr"] < 1.5e-3 for t in ranked(search.complete, plan.objectives))


def test_trials_are_a_study_like_any_other(found: tuple[Path, SearchRecord, Search]) -> None:
    folder, plan, search = found
    study = read_study(folder / "grpo")
    assert len(study.runs) == 20 * 2
    assert study.missing == ()
    assert {r.spec.seed for r in study.runs} == set(plan.tuning_seeds)
    assert {r.spec.monitor.on_collapse for r in study.runs} == {"stop"}
    for trial in search.complete:
        assert all((folder / "grpo" / RUNS / r).is_dir() for r in trial.user_attrs["runs"])
        lr = {r.spec.recipe.lr for r in study.of(trial.user_attrs["arm"])}
        assert lr == {trial.params["recipe.lr"]}


def test_the_best_run_again_on_fresh_seeds_and_the_report_shows_the_optimism(
    found: tuple[Path, SearchRecord, Search], tmp_path: Path
) -> None:
    _, plan, search = found
    spec, what = final_study(plan, [search])
    assert [a.roster for a in spec.arms] == ["matched", "tuned", "tuned", "tuned"]
    assert spec.seeds == (0, 1, 2)
    run_study(plan_runs(spec, tmp_path), tmp_path, planted(parallel=100), None, lambda states: None)
    data = tuning_data(plan, {"GRPO": trial_rows(search)}, final_rows(tmp_path, spec, what))
    [row] = data["algorithms"]
    for candidate in row["candidates"]:
        assert candidate["optimism"] == pytest.approx(candidate["tuning_score"] - candidate["again"]["value"])
    assert row["difference"]["value"] > 0.05
    assert row["best_of"][0] < row["best_of"][-1]
    assert row["counts"]["complete"] == 20
    page = markdown(data)
    assert "Optimism" in page
    assert "lr x 0.33" in page
    assert "GRPO" in terminal(data)


def signature(search: Search) -> list[tuple[Any, ...]]:
    return [(t.params["recipe.lr"], t.params["surrogate.high"], t.value) for t in search.complete]


def test_an_interrupted_search_asks_what_an_uninterrupted_one_asks(tmp_path: Path) -> None:
    """One run at a time, so that the order of ends is no matter; in a journal and in sqlite."""
    plan = record(trials=8, tuning_seeds=(1000,))
    whole = run(tmp_path / "a", plan, planted(parallel=1))
    for stop in (2, 5):
        run(tmp_path / "b", plan, planted(parallel=1), stop=stop)
    assert len(signature(run(tmp_path / "b", plan, planted(parallel=1)))) == 8
    assert signature(search_of(tmp_path / "b", plan)) == signature(whole)
    url = default_storage(tmp_path / "c")
    run(tmp_path / "c", plan, planted(parallel=1), url=url, stop=3)
    assert signature(run(tmp_path / "c", plan, planted(parallel=1), url=url)) == signature(whole)


def test_workers_killed_at_random_lose_and_duplicate_no_trial(tmp_path: Path) -> None:
    """A third of all attempts die; some runs more often than they are started again."""
    rng = np.random.default_rng(0)
    plan = record(trials=10)
    for _ in range(20):
        search = run(tmp_path / "t", plan, planted(kill=lambda run_id, attempt: rng.random() < 0.35))
        if len(search.complete) == 10:
            break
    trials = search.study.get_trials()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len(complete) == len({tuple(t.params.values()) for t in complete}) == 10
    retried = {t.user_attrs["retry_of"] for t in trials if "retry_of" in t.user_attrs}
    failed = {t.number for t in trials if t.state == TrialState.FAIL}
    assert retried <= failed
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    assert search.study.get_trials()[0].user_attrs["what"] == "defaults"


def test_a_search_grows_but_does_not_change(tmp_path: Path) -> None:
    run(tmp_path / "t", record(trials=4), planted())
    assert len(run(tmp_path / "t", record(trials=6), planted()).complete) == 6
    with pytest.raises(UsageError, match="another space"):
        run(tmp_path / "t", record(trials=6, space=SPACE[:1]), planted())
    with pytest.raises(UsageError, match="another space or other settings"):
        search_of(tmp_path / "t", record(trials=6, space=SPACE[:1]))


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    plan = record(trials=10, objectives=("score", "instability", "sampled_tokens"), sampler="nsga2")
    search = run(tmp_path / "t", plan, planted())
    first = ranked(search.complete, plan.objectives)
    assert len(first[0].values) == 3
    assert all(t.constraints["collapse"] <= 0 for t in first)
    assert trial_rows(search)[0]["values"] == search.complete[0].values


@pytest.mark.parametrize("sampler", ["gp", "qmc", "random"])
def test_other_samplers(tmp_path: Path, sampler: str) -> None:
    assert len(run(tmp_path / "t", record(trials=6, sampler=sampler), planted()).complete) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("surrogate.high", "no dimension"),
        ("surrogate.high=0.1:x", "no interval"),
        ("surrogate.high=0.5:0.1", "surrogate.high from 0.5 to 0.1 is no interval: low must be below high"),
        ("surrogate.high=0.3:0.3", "--dim surrogate.high=0.3:0.3\n  why:     surrogate.high from 0.3 to 0.3 is no"),
        ("surrogate.high=0:0.5:log", "low must be above 0"),
        ("surrogate.hihg=0.1:0.5", "did you mean surrogate.high"),
        ("surrogate.high=-0.1:0.5", "greater than or equal to 0"),
        ("surrogate.high=0.3:0.5", "outside"),
        ("recipe.lr=-1:1", "lr"),
        ("siblings=4", "two or more"),
        ("siblings=1,8", "siblings=1"),
    ],
)
def test_spaces_that_cannot_work_are_refused(text: str, expected: str) -> None:
    plan = record()
    with pytest.raises(UsageError) as error:
        space_of(plan.searched[0].arm, plan.final.recipe, [parse_dimension(text, parse_value)])
    assert expected in str(error.value), str(error.value)
    assert error.value.instead


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "gspo", "gspo_token", "gfpo"])
def test_every_algorithm_ships_a_space_around_its_defaults(name: str) -> None:
    options = replace(SMALL, arms=(name,), run_equivalent=True)
    spec = build(options, recipe, held_out, lambda s: BackendSpec(threads=1)).spec
    arm = spec.arms[0]
    space = space_of(arm, spec.recipe)
    assert {"recipe.lr", "surrogate.low", "surrogate.high"} <= {d.path for d in space}
    assert len(space) <= 3 + 3, "shared dimensions and at most three of its own"
    same = arm_of(arm, defaults(arm, space, spec.recipe), "x", spec.recipe)
    assert (same.overrides, same.recipe) == (arm.overrides, {})


def test_seeds_that_overlap_and_senseless_objectives_are_refused() -> None:
    for changes, expected in (
        ({"tuning_seeds": (2, 1000)}, "they share"),
        ({"objectives": ("instability",)}, "score is one of them"),
    ):
        with pytest.raises(UsageError, match=expected):
            check_search(record(**changes))


def test_a_full_disk_is_told_and_leaves_the_search_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.core.errors import InfrastructureError

    plan, url = record(trials=4), default_storage(tmp_path / "t")
    run(tmp_path / "t", plan, planted(), url=url, stop=2)

    def full(*args: Any, **kwargs: Any) -> None:
        raise optuna.exceptions.StorageInternalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "create_new_trial", full)
        patch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", full)
        with pytest.raises(InfrastructureError, match="disk is full"):
            run(tmp_path / "t", plan, planted(), url=url)
    assert len(run(tmp_path / "t", plan, planted(), url=url).complete) == 4


def test_a_budget_ends_the_search_of_each_algorithm_and_more_continues_it(tmp_path: Path) -> None:
    """A planted run samples 40 x 4096 tokens; two seeds in a trial."""
    plan = record(trials=9)
    limits = Limits(tokens=3 * 2 * 40 * 4096)
    search = Search(journal(tmp_path), tmp_path, plan, plan.searched[0], limits)
    run_trials(search, planted(parallel=1), 1, lambda s, states: None, pause_s=0.0)
    assert len(search.complete) == 3
    assert len(run(tmp_path, plan, planted()).complete) == 9


def test_what_cannot_be_pruned_or_bounded_is_refused() -> None:
    for changes, expected in (
        ({"pruner": "median", "objectives": ("score", "instability")}, "which of two trials lags"),
        ({"kl_limit": 0.1}, "no reference policy"),
    ):
        with pytest.raises(UsageError, match=expected):
            check_search(record(**changes))


def test_a_kl_above_its_limit_is_a_violated_constraint() -> None:
    facts = RunFacts(
        run_id="a", seed=0, test=0.5, validation=0.5, collapsed=False, event=None, onset=None, length=10.0,
        sampled_tokens=10, seconds=1.0, memory_gib=2.0, kl=0.3, drawdown=0.0, degraded=0.0,
    )  # fmt: skip
    assert constraints([facts], 3.0, 0.1) == {"collapse": -1.0, "memory_gib": -1.0, "kl": pytest.approx(0.2)}
    assert constraints([facts, replace(facts, collapsed=True)], None, None) == {"collapse": 0.5}


def test_the_page_shows_every_figure_and_needs_no_network(
    found: tuple[Path, SearchRecord, Search], tmp_path: Path
) -> None:
    _, plan, search = found
    spec, what = final_study(plan, [search])
    run_study(plan_runs(spec, tmp_path), tmp_path, planted(parallel=100), None, lambda states: None)
    shares = {"GRPO": importances(search.complete, 0)}
    data = tuning_data(plan, {"GRPO": trial_rows(search)}, final_rows(tmp_path, spec, what), shares)
    write_tuning(tmp_path, data)
    page = (tmp_path / "report" / "tuning.html").read_text()
    drawn = {p.stem for p in (tmp_path / "report" / "figures").glob("*.png")}
    each = {f"grpo-{n}" for n in ("history", "importance", "slices", "parallel", "contour")}
    assert drawn == each | {"default-tuned", "best-of-k", "lr-sensitivity"}
    assert page.count("<svg") == len(drawn)
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in ("fANOVA", "PED-ANOVA"):
        known = data["algorithms"][0]["importance"][name]
        assert sum(s["value"] for s in known["shares"].values()) == pytest.approx(1)
        assert known["stable"] == (known["flips"] <= 0.1)
    assert importances(search.complete[:9], 0) is None


def test_two_objectives_have_a_pareto_figure(tmp_path: Path) -> None:
    plan = record(trials=6, objectives=("score", "instability"), sampler="nsga2")
    search = run(tmp_path / "t", plan, planted())
    data = tuning_data(plan, {"GRPO": trial_rows(search)}, final_rows(tmp_path, *nothing_again(plan, search)))
    write_tuning(tmp_path, data)
    assert (tmp_path / "report" / "figures" / "grpo-pareto.svg").exists()


def nothing_again(plan: SearchRecord, search: Search) -> tuple[Any, Any]:
    """The re-evaluation before any of its runs."""
    return final_study(plan, [search])


def test_a_study_and_a_search_never_share_a_folder(tmp_path: Path) -> None:
    plan = record()
    (tmp_path / "t").mkdir()
    write_search(tmp_path / "t", plan)
    with pytest.raises(UsageError, match="a search of that name exists"):
        prepare_folder(plan.final.model_copy(update={"name": "t"}), tmp_path)
    folder = prepare_folder(plan.final.model_copy(update={"name": "s"}), tmp_path)
    with pytest.raises(UsageError, match="a study of that name exists"):
        write_search(folder, plan)
