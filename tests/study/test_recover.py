"""A recovery study: what each remedy changes, what is refused, and a whole one from command line to table."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from harness.commands.recover import collapsed_runs, models
from harness.core import schema
from harness.core.algorithm import leaves
from harness.core.checkpoints import listed
from harness.core.errors import UsageError
from harness.core.resolve import resolve
from harness.core.results import (
    CHECKPOINTS,
    COLLAPSED,
    EVENTS,
    RUNS,
    STEPS,
    EventRecord,
    append_line,
    read_lines,
    read_run,
    to_json,
)
from harness.core.spec import Budget, PromptOrder, RunSpec, StartSpec
from harness.report.page import render
from harness.report.recovery_page import page as recovery_page
from harness.run import main
from harness.study.recover import RecoveryChoices, RecoveryPlan, plan_recovery
from harness.study.recovered import judged, outcome, read_plan
from harness.study.remedies import REMEDIES, Case
from tests.cli.test_usage import run as command
from tests.fakes.small_runs import make_folder, run_spec

FAULT = {"at": 0.5, "overrides": {"recipe.lr": 0.03, "surrogate.high": 0.9}}


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of GRPO; from step 7 on a hundred times the learning rate and a wide clip range."""
    spec = run_spec(
        "grpo", steps=12, seed=2, schedule=[FAULT], eval={"points": 6},
        checkpoints={"every": 2, "margin": 2, "ladder": "always"},
    )  # fmt: skip
    folder = make_folder(spec, tmp_path_factory.mktemp("results") / "study" / RUNS)
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def donor(collapsed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as if no detector had seen it: the tests say themselves what the episode is."""
    folder = tmp_path_factory.mktemp("silent") / "study" / RUNS / collapsed.name
    shutil.copytree(collapsed, folder, ignore=shutil.ignore_patterns(EVENTS))
    return folder


def plan(donor: Path, **choices: Any) -> RecoveryPlan:
    return plan_recovery(RecoveryChoices(**{"runs": (str(donor),), "onset": 8, "confirm": 10, **choices}), models())


def flat(spec: RunSpec) -> dict[str, Any]:
    """Everything of a run: its algorithm as resolved, and its settings."""
    data = spec.model_dump(exclude={"overrides", "algorithm"})
    for part in ("recipe", "start"):
        data |= {f"{part}.{k}": v for k, v in data.pop(part).items()}
    return data | leaves(resolve(spec))


def changed(a: RunSpec, b: RunSpec) -> dict[str, tuple[Any, Any]]:
    one, two = flat(a), flat(b)
    keys = {k for k in one.keys() | two.keys() if one.get(k) != two.get(k)} - {"arm"}
    return {k: (one.get(k), two.get(k)) for k in keys}


def test_a_restart_is_the_collapsed_run_at_its_onset_with_another_seed(donor: Path) -> None:
    """The schedule's fault was in force, so it stays; the initial model is still that of the donor's seed."""
    found = plan(donor, remedies=("restart",))
    [episode] = found.spec.episodes
    assert (episode.onset, episode.confirm, episode.checkpoints) == (8, 10, {"last_healthy": 6, "collapsed": 10})
    assert set(episode.in_force) == {"recipe.lr = 0.03", "surrogate.high = 0.9"}
    scores = {e.step: e.score for e in read_run(donor).evals if e.split == "validation"}
    assert episode.best == max(score for step, score in scores.items() if step < 8)
    assert episode.base == scores[0]
    assert len(found.runs) == 6
    for attempt, spec in zip(found.spec.attempts, found.runs, strict=True):
        begun = episode.checkpoints[attempt.start]
        assert changed(read_run(donor).spec.model_copy(update={"start": StartSpec(run=str(donor))}), spec).keys() == {
            "recipe.lr", "surrogate.high", "schedule", "seed", "budget", "eval", "start.checkpoint", "checkpoints",
            "model",
        }  # fmt: skip
        assert spec.recipe.lr == 0.03
        assert spec.model.params == {"coldstart": 2}
        assert spec.start == StartSpec(run=str(donor), checkpoint=str(begun))
        assert spec.budget == Budget(steps=begun + episode.steps)
        assert (spec.run_id, spec.seed) == (attempt.run_id, attempt.seed)
        remaining = spec.eval.points * episode.steps / (begun + episode.steps)
        assert remaining >= 5.5, "as often as the collapsed run, and as often as a verdict needs"
    assert [a.seed for a in found.spec.attempts] == [101, 101, 102, 102, 103, 103]


EXPECTED: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "restart": {},
    "lr_third": {"recipe.lr": (0.03, 0.01)},
    "lr_tenth": {"recipe.lr": (0.03, 0.003)},
    "clip_tighter": {"surrogate.low": (0.2, 0.1), "surrogate.high": (0.9, 0.45)},
    "clip_looser": {"surrogate.low": (0.2, 0.4), "surrogate.high": (0.9, 1.8)},
    "new_queries": {"start.prompts": (None, {"seed": 2, "first": 24})},
    "longer": {"recipe.max_new_tokens": (35, 70)},
    "fresh_optimizer": {"start.reset": ((), ("optimizer",))},
    "default_settings": {"recipe.lr": (0.03, 3e-4), "surrogate.high": (0.9, 0.27)},
}


@pytest.mark.parametrize("remedy", [*EXPECTED])
def test_a_remedy_changes_one_thing(donor: Path, remedy: str) -> None:
    found = plan(donor, remedies=("restart", remedy), seeds=(5,), starts=("last_healthy",))
    found_again = plan(donor, remedies=("restart",), seeds=(5,), starts=("last_healthy",))
    difference = changed(found_again.runs[0], found.runs[-1])
    assert difference.keys() == EXPECTED[remedy].keys()
    for key, (old, new) in EXPECTED[remedy].items():
        assert difference[key] == (pytest.approx(old), pytest.approx(new)) if old else difference[key] == (old, new)


def test_another_algorithm_comes_with_its_own_range(donor: Path) -> None:
    found = plan(donor, remedies=("other_algorithm",), seeds=(5,))
    assert [resolve(spec).ratio.kind for spec in found.runs] == ["sequence", "sequence"]
    assert [leaves(resolve(spec))["surrogate.high"] for spec in found.runs] == [4e-4, 4e-4]
    assert found.runs[0].start is not None
    assert found.runs[0].start.reset == ("adaptive",)
    [ppo, _] = plan(donor, remedies=("other_algorithm",), seeds=(5,), other="ppo").runs
    assert ppo.start is not None
    assert ppo.start.reset == ("critic", "adaptive"), "the collapsed run had no critic to take over"
    assert ppo.recipe.lr == 0.03, "only the algorithm is another one"


def case(spec: RunSpec, **changes: Any) -> Case:
    facts: dict[str, Any] = {"start_step": 4, "last_step": 10, "steps": 6, "train_size": None, "recipe": {},
                             "longest": None, "other": None}  # fmt: skip
    started = spec.model_copy(update={"start": StartSpec(run="r", checkpoint="4"), "schedule": ()})
    return Case(**{"spec": started, "donor": spec, **facts, **changes})


@pytest.mark.parametrize(
    ("arm", "before", "after"),
    [
        ("gspo_calibrated", {"kappa_low": 1.0, "kappa_high": 4 / 3}, {"kappa_low": 0.5, "kappa_high": 2 / 3}),
        ("gspo", {"low": 3e-4, "high": 4e-4}, {"low": 1.5e-4, "high": 2e-4}),
    ],
)
def test_a_range_is_scaled_in_its_own_units(arm: str, before: dict[str, float], after: dict[str, float]) -> None:
    """A calibrated range by its kappas, whatever was measured."""
    spec = run_spec(arm)
    found = leaves(resolve(REMEDIES["clip_tighter"][1](case(spec))))
    known = leaves(resolve(spec))
    assert {k: known[f"surrogate.{k}"] for k in before} == pytest.approx(before)
    assert {k: found[f"surrogate.{k}"] for k in after} == pytest.approx(after)


def test_new_queries_are_those_that_no_run_has_seen() -> None:
    """4 prompts a step: the donor has used 40 (and was itself moved by 8), the attempt needs 24."""
    donor = run_spec(start={"run": "r", "prompts": {"seed": 7, "first": 8}})
    found = REMEDIES["new_queries"][1](case(donor, train_size=8 + 40 + 24))
    assert found.start is not None
    assert found.start.prompts == PromptOrder(seed=7, first=8 + 6 * 4), "rollout 4 of it is number 8 + 40"
    with pytest.raises(UsageError, match="has 71 prompts, the collapsed run used 48, and 24 new ones"):
        REMEDIES["new_queries"][1](case(donor, train_size=8 + 40 + 23))


@pytest.mark.parametrize(
    ("remedy", "spec", "changes", "words"),
    [
        ("clip_tighter", run_spec("rft"), {}, "no range"),
        ("clip_looser", run_spec(overrides={"surrogate.low": 1e6, "surrogate.high": 1e6}), {}, "no range"),
        ("longer", run_spec(), {"longest": 60}, "60 response tokens; 70 are needed"),
        ("default_settings", run_spec(), {"recipe": run_spec().recipe.model_dump()}, "own settings"),
        ("other_algorithm", run_spec(), {"other": "grpo"}, "GRPO would be what collapsed"),
    ],
)
def test_a_remedy_that_would_change_nothing_is_refused(
    remedy: str, spec: RunSpec, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        REMEDIES[remedy][1](case(spec, **changes))


def test_what_cannot_be_applied_is_left_out_and_said(donor: Path) -> None:
    found = plan(donor, other="grpo", seeds=(5,))
    assert {a.remedy for a in found.spec.attempts} == {*REMEDIES}
    spec = read_run(donor).spec
    wide = {**spec.overrides, "surrogate.low": 1e6, "surrogate.high": 1e6}
    spec_without = spec.model_copy(update={"overrides": wide, "schedule": ()})
    (donor / "spec.json").write_text(spec_without.model_dump_json())
    try:
        found = plan(donor, seeds=(5,))
        assert {s.remedy for s in found.spec.skipped} == {"clip_tighter", "clip_looser"}
        with pytest.raises(UsageError, match="remedy clip_looser for"):
            plan(donor, remedies=("clip_looser",))
    finally:
        (donor / "spec.json").write_text(spec.model_dump_json())


def test_the_names_of_a_folder_follow_the_choices(donor: Path) -> None:
    names = {plan(donor, **c).spec.name for c in ({}, {"seeds": (5,)}, {"remedies": ("restart",)}, {"onset": 9})}
    assert len(names) == 4
    assert plan(donor).spec == plan(donor).spec


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{donor}"], ["no FATAL or COLLAPSE", "--onset STEP"]),
        (["{study}"], ["none of its 1 runs has a collapse"]),
        (["{donor}", "--onset", "13"], ["steps 1 to 12"]),
        (["{donor}", "--onset", "8", "--confirm", "7"], ["at or after its onset"]),
        (["{donor}", "--confirm", "7"], ["at or after its onset", "--onset"]),
        (["{donor}", "--onset", "8", "--remedies", "lr_thrid"], ["lr_thrid", "did you mean lr_third"]),
        (["{donor}", "--onset", "8", "--starts", "healthy"], ["'healthy'", "last_healthy"]),
        (["{donor}", "--onset", "8", "--seeds", "2,3"], ["seed 2", "only repeat"]),
        (["{donor}", "--onset", "8", "--seeds", "x"], ["--seeds x"]),
        (["{donor}", "--onset", "8", "--seeds", "0"], ["no seed"]),
        (["{donor}", "--onset", "8", "--other", "gsop"], ["gsop", "did you mean gspo"]),
        (["{donor}", "--onset", "8", "--steps", "3"], ["--steps 3", "--steps 6 or more"]),
        (["{donor}", "{donor}", "--onset", "8"], ["names something twice"]),
        (["nowhere"], ["no spec.json"]),
        (["missing.yaml"], ["missing.yaml"]),
        (["other.yaml"], ["type: recovery"]),
        (["wrong.yaml"], ["remedy", "did you mean remedies"]),
        (["{donor}", "--onset", "8", "--remedies", "restart", "--results", "a_file/x"], ["another --results"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_recover_refuses(
    donor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    (tmp_path / "other.yaml").write_text("extends: quick\n")
    (tmp_path / "wrong.yaml").write_text(f"type: recovery\nruns: [{donor}]\nremedy: [restart]\n")
    (donor.parents[1] / "study.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    filled = [a.format(donor=donor, study=donor.parents[1]) for a in arguments]
    assert command(monkeypatch, "recover", *filled) == 2
    said = capsys.readouterr().err
    for word in ("error:", "why:", "instead:", *words):
        assert word in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_the_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = make_folder(run_spec(steps=4, checkpoints={"every": 0}), tmp_path)
    assert main([str(folder)]) == 0
    for path in listed(folder / CHECKPOINTS)[:-1]:
        (path / "state.json").unlink()
    with pytest.raises(UsageError, match=r"(?s)no checkpoint to start from: last_healthy.*ladder=always"):
        plan(folder, onset=2, confirm=3)


def test_a_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has not ended"):
        plan(make_folder(run_spec(), tmp_path))


@pytest.fixture(scope="module")
def recovered(donor: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two start points, one remedy, one seed, as somebody would type it; and the command."""
    results = tmp_path_factory.mktemp("recovery")
    arguments = ["recover", str(donor), "--onset", "8", "--confirm", "10", "--remedies", "lr_tenth", "--seeds", "1",
                 "--results", str(results), "--parallel", "2"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *arguments, "--dry-run") == 0
        assert not [*results.iterdir()]
        assert command(patch, *arguments) == 0
    [folder] = results.iterdir()
    return folder, arguments


def test_a_recovery_study_is_run_judged_and_written(recovered: tuple[Path, list[str]]) -> None:
    folder, _ = recovered
    found = json.loads((folder / "report" / "recovery.json").read_text())
    jsonschema.Draft202012Validator(schema.schemas()["recovery.schema.json"]).validate(found)
    assert [a["verdict"] is not None for a in found["attempts"]] == [True, True]
    assert [(row["start"], row["attempts"]) for row in found["rows"]] == [("last_healthy", 1), ("collapsed", 1)]
    for record in found["attempts"]:
        run = read_run(folder / RUNS / record["run_id"])
        assert run.result is not None
        assert run.steps[0]["step"] == found["spec"]["episodes"][0]["checkpoints"][record["start"]] + 1
        assert record["steps"] == found["spec"]["episodes"][0]["steps"]
        assert any("starts from" in d for d in run.result.deviations)
        kept = listed(folder / RUNS / record["run_id"] / CHECKPOINTS)
        assert bool(kept) == (record["verdict"] == "recovered"), "what did not recover needs no checkpoint"
    assert "## Attempts" in (folder / "report" / "recovery.md").read_text()
    page = (folder / "report" / "recovery.html").read_text()
    assert found["answer"][0] in html.unescape(page)
    assert all(a["run_id"] in page for a in found["attempts"])
    assert {p.name for p in (folder / "report" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("recovered", "time-to-recovery") for kind in ("svg", "png")
    }


def test_the_page_is_rendered_again_from_the_record_alone(
    recovered: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = recovered
    assert command(monkeypatch, "report", str(folder / "report" / "recovery.json"), "--out", str(tmp_path)) == 0
    for name in ("recovery.html", "recovery.md", "figures/recovered.svg"):
        assert (tmp_path / name).read_bytes() == (folder / "report" / name).read_bytes(), name


@pytest.mark.parametrize("judged", [0, 1, 26])
def test_the_figures_of_a_recovery_hold_what_was_judged(judged: int) -> None:
    record = json.loads((Path(__file__).parents[2] / "results/reference/recovery/recovery.json").read_text())
    open_ = [{**a, "verdict": None, "steps": None, "recovered_after": None} for a in record["attempts"][judged:]]
    rows = record["rows"] if judged == 26 else [
        {**r, "attempts": 0, "episodes": {"k": 0, "n": 0, "value": None, "low": None, "high": None}}
        for r in record["rows"]
    ]  # fmt: skip
    page = render(recovery_page({**record, "attempts": [*record["attempts"][:judged], *open_], "rows": rows}))
    assert ("Steps until recovery" in page) == (judged > 0)
    assert page.count(">open</text>") == (len(rows) if judged < 26 else 0)
    assert ("2/2</text>" in page) == (judged == 26)


def test_repeating_the_command_repeats_nothing(
    recovered: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments = recovered
    before = {p: p.stat().st_mtime_ns for p in (folder / RUNS).rglob("*") if p.is_file()}
    assert command(monkeypatch, *arguments, "--json") == 0
    out, err = capsys.readouterr()
    assert "(0 to do)" in err
    assert json.loads(out)["rows"] == json.loads((folder / "report" / "recovery.json").read_text())["rows"]
    assert command(monkeypatch, "report", str(folder)) == 0
    assert "learning rate / 10" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (folder / RUNS).rglob("*") if p.is_file()} == before


def test_a_yaml_file_says_the_same_as_options(
    donor: Path, recovered: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, _ = recovered
    data = {"type": "recovery", "runs": [str(donor)], "onset": 8, "confirm": 10, "remedies": ["lr_tenth"],
            "seeds": [101]}  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
    arguments = ["recover", str(tmp_path / "plan.yaml"), "--dry-run", "--json", "--results", str(folder.parent)]
    assert command(monkeypatch, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["cost"]["todo"]) == (str(folder), 0)
    assert command(monkeypatch, *arguments, "--seeds", "2") == 0
    assert json.loads(capsys.readouterr().out)["cost"]["attempts"] == 4


def test_events_name_the_episode_and_failures_count_nowhere(donor: Path, tmp_path: Path) -> None:
    """A detector's event instead of --onset; an attempt whose machine failed, and one that has not begun."""
    event = EventRecord(type="reward_collapse", severity="COLLAPSE", onset_step=9, confirm_step=11, rule_id="r")
    append_line(donor / EVENTS, to_json(event))
    try:
        found = plan(donor, onset=None, confirm=None, remedies=("restart",), seeds=(5, 6), starts=("half",))
    finally:
        (donor / EVENTS).unlink()
    [episode] = found.spec.episodes
    assert (episode.type, episode.onset, episode.confirm, episode.checkpoints) == (
        "reward_collapse",
        9,
        11,
        {"half": 4},
    )
    (tmp_path / "recovery.yaml").write_text(yaml.safe_dump(found.spec.model_dump(mode="json")))
    assert read_plan(tmp_path) == found.spec
    gone = found.runs[0].model_copy(update={"task": found.runs[0].task.model_copy(update={"name": "no such task"})})
    make_folder(found.runs[0], tmp_path / RUNS).joinpath("spec.json").write_text(gone.model_dump_json())
    assert main([str(tmp_path / RUNS / found.runs[0].run_id)]) == 2
    report = outcome(tmp_path)
    assert [a.verdict for a in report.attempts] == [None, None]
    assert report.rows[0].attempts == 0
    assert report.answer == ("2 attempts without a verdict.",)
    assert judged(tmp_path, found.spec, found.spec.attempts[1]).why == "not finished"


def test_the_episode_is_the_one_that_the_detectors_saw(collapsed: Path) -> None:
    """Without --onset: the first collapse of the run's own events.jsonl, which lies in the broken half."""
    found = [e for e in read_run(collapsed).events if e.severity in COLLAPSED]
    first = min(found, key=lambda e: (e.confirm_step, e.onset_step))
    [episode] = plan(collapsed, onset=None, confirm=None, remedies=("restart",)).spec.episodes
    assert (episode.type, episode.onset, episode.confirm) == (first.type, first.onset_step, first.confirm_step)
    assert episode.confirm > 6


def test_several_episodes_are_kept_apart(donor: Path, tmp_path: Path) -> None:
    """Two collapsed runs with their own onsets; a study folder stands for all of its collapsed runs."""
    study = tmp_path / "study"
    places = [study / RUNS / name for name in ("grpo-s2-one", "grpo-s2-two", "grpo-s2-healthy")]
    for onset, place in zip((8, 9, None), places, strict=True):
        shutil.copytree(donor, place)
        if onset is not None:
            event = EventRecord(type="x", severity="COLLAPSE", onset_step=onset, confirm_step=10, rule_id="r")
            append_line(place / EVENTS, to_json(event))
    (study / "study.yaml").touch()
    assert collapsed_runs(study) == [str(places[0]), str(places[1])]
    found = plan(places[0], runs=collapsed_runs(study), onset=None, confirm=None, remedies=("restart",), seeds=(5,))
    assert [e.onset for e in found.spec.episodes] == [8, 9]
    assert [(a.episode, a.start) for a in found.spec.attempts] == [
        (0, "last_healthy"), (0, "collapsed"), (1, "last_healthy"), (1, "collapsed"),
    ]  # fmt: skip
    assert len({a.run_id for a in found.spec.attempts}) == 4
    assert [r.start.run for r in found.runs if r.start] == [str(places[i]) for i in (0, 0, 1, 1)]
    assert found.runs[0].arm == "grpo s2 healthy: plain restart, another seed"


def test_an_attempt_is_resumable(donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed like any other run, it ends with the same numbers: also without the collapsed run's checkpoint."""
    from tests.fakes.small_runs import numbers_of
    from tests.run.test_interruption import Killed, kill_at

    spec = plan(donor, remedies=("restart",), seeds=(5,), starts=("last_healthy",)).runs[0]
    spec = spec.model_copy(update={"budget": Budget(steps=9)})
    whole, killed = make_folder(spec, tmp_path / "whole"), make_folder(spec, tmp_path / "killed")
    assert main([str(whole)]) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 8)
        with pytest.raises(Killed):
            main([str(killed)])
    assert main([str(killed)]) == 0
    assert [row["step"] for row in read_lines(killed / STEPS)] == [7, 8, 9]
    assert numbers_of(killed) == numbers_of(whole)
