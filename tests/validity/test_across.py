"""Checks across runs: every setting that must be the same, budgets, the noise floor, and what a report makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.results import Finding, Provenance, StudyFolder, read_study
from harness.core.spec import ArmSpec
from harness.report.components import shared_setup
from harness.validity.across import PER_SEED, SETTINGS, judge, noise_floor
from tests.fakes.run_folders import write_fake_study

Change = Callable[[dict[str, Any]], None]
PROVENANCE = {
    "tokenizer_sha256": "other", "template_sha256": "other", "model_sha256": "other", "packages": {"torch": "9.0"},
    "cpu": "another", "gpu": "another", "git_commit": "1" * 40, "harness_version": "9.9",
    "engine": {"name": "vllm", "version": "1", "dtype": "bfloat16", "exact_repeat": False},
}  # fmt: skip
SPEC: dict[str, Any] = {
    "task": {"name": "other"}, "model": {"name": "other"}, "recipe": {"lr": 1.0}, "budget": {"steps": 3},
    "eval": {"points": 1}, "backend": {"threads": 7}, "schedule": [{"at": 0.5, "overrides": {"recipe.lr": 0.1}}],
    "start": {"run": "elsewhere"}, "numerics_version": 99,
}  # fmt: skip
KNOWN = {
    "tokenizer_sha256": "t", "template_sha256": "p", "model_sha256": "m",
    "engine": {"name": "transformers", "version": "5", "dtype": "float32", "exact_repeat": True},
}  # fmt: skip


def edit(file: Path, change: Change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def study_of(folder: Path, **options: Any) -> StudyFolder:
    """Two arms at two seeds, with everything recorded."""
    write_fake_study(folder, ["GRPO", "PPO"], [0, 1], 4, **options)
    for run in read_study(folder).runs:
        if run.result is not None:
            edit(run.path / "result.json", lambda data: data["provenance"].update(KNOWN))
    return read_study(folder)


def findings(folder: Path) -> dict[str, Finding]:
    study = read_study(folder)
    return {f.check: f for f in judge(study.spec, study.runs)}


def test_a_clean_study_passes_every_check(tmp_path: Path) -> None:
    study_of(tmp_path / "s")
    found = findings(tmp_path / "s")
    assert {f.level for f in found.values()} == {"PASS"}
    assert set(found) == {f"same {name}" for _, name in SETTINGS.values()} | {"budget spent"}
    assert [c for c, f in found.items() if f.measured == "not recorded"] == []


def test_every_recorded_factor_of_a_run_is_compared() -> None:
    """Only the machine's and the moment's own stay out."""
    left_out = {"started", "finished", "command", "python", "platform", "num_cpus", "git_dirty", "numerics_version"}
    assert set(Provenance.model_fields) - left_out == (set(SETTINGS) - set(SPEC) - {"questions"})


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_a_difference_between_arms_and_between_seeds(tmp_path: Path, key: str) -> None:
    """Between the arms of a seed pair: the setting's own level. Between seed pairs only: a warning at most."""
    level, name = SETTINGS[key]
    for odd, expected in ((1, level), (2, "PASS" if key in PER_SEED else "WARN")):
        folder = tmp_path / str(odd)
        study = study_of(folder)
        runs = [r for r in study.runs if r.spec.seed == 1][:odd]
        for run in runs:
            if key in PROVENANCE:
                edit(run.path / "result.json", lambda data: data["provenance"].update({key: PROVENANCE[key]}))
            elif key == "questions":
                lines = [json.loads(line) for line in (run.path / "evals.jsonl").read_text().splitlines()]
                lines[-1]["questions"][0]["id"] = "another"
                (run.path / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            else:
                edit(run.path / "spec.json", lambda data: data.update({key: SPEC[key]}))
        found = findings(folder)[f"same {name}"]
        assert found.level == expected, found
        assert found.advice or expected == "PASS"
        if expected != "PASS":
            assert {r.run_id for r in runs} <= set(found.runs)
            assert "run" in found.measured


def test_what_was_not_recorded_is_no_difference(tmp_path: Path) -> None:
    study = study_of(tmp_path / "s")
    edit(study.runs[0].path / "result.json", lambda data: data["provenance"].update(engine=None, model_sha256=None))
    assert {f.level for f in findings(tmp_path / "s").values()} == {"PASS"}


def test_runs_that_are_invalid_or_failed_are_not_compared(tmp_path: Path) -> None:
    study = study_of(tmp_path / "s")
    for run, change in zip(study.runs, ({"validity": "INVALID"}, {"status": "infra_failed"}), strict=False):
        edit(run.path / "result.json", lambda data, c=change: data.update(c))  # type: ignore[misc]
        edit(run.path / "result.json", lambda data: data["provenance"].update(PROVENANCE))
    assert {f.level for f in findings(tmp_path / "s").values()} == {"PASS"}


def test_budgets(tmp_path: Path) -> None:
    study = study_of(tmp_path / "short")
    edit(study.runs[0].path / "result.json", lambda data: data.update(sampled_tokens=100, steps=1))
    short = findings(tmp_path / "short")["budget spent"]
    assert (short.level, short.runs) == ("INVALID", (study.runs[0].run_id,))
    study = study_of(tmp_path / "long")
    for run in study.runs[:2]:
        edit(run.path / "result.json", lambda data: data.update(sampled_tokens=2 * data["sampled_tokens"]))
    assert findings(tmp_path / "long")["budget spent"].level == "WARN"
    study = study_of(tmp_path / "collapsed")
    edit(study.runs[0].path / "result.json", lambda data: data.update(status="collapsed", sampled_tokens=100))
    assert findings(tmp_path / "collapsed")["budget spent"].level == "PASS"
    study = study_of(tmp_path / "base")
    for run in study.runs[:2]:  # an arm without training
        edit(
            run.path / "result.json",
            lambda data: (data.update(sampled_tokens=0), data["algorithm_resolved"].update(updates={"epochs": 0})),
        )
    assert findings(tmp_path / "base")["budget spent"].level == "PASS"


def test_a_control_may_have_its_own_recipe(tmp_path: Path) -> None:
    canary = ArmSpec(name="Canary", algorithm="grpo", bracket="control", recipe={"lr": 0.0})
    write_fake_study(tmp_path / "s", ["GRPO", canary], [0, 1], 4)
    for run in read_study(tmp_path / "s").of("Canary"):
        edit(run.path / "spec.json", lambda data: data["recipe"].update(lr=0.0))
        edit(run.path / "result.json", lambda data: data.update(final_score=0.36, base_score=0.35))
    found = findings(tmp_path / "s")
    assert {f.level for f in found.values()} == {"PASS"}
    assert found["noise floor"].values["largest"] == pytest.approx(0.01)
    for run in read_study(tmp_path / "s").of("Canary"):
        edit(run.path / "spec.json", lambda data: data["recipe"].update(temperature=0.5))
    assert findings(tmp_path / "s")["same recipe"].level == "INVALID", "only what it declares"


def test_a_ranked_arm_may_not() -> None:
    with pytest.raises(ValueError, match="only controls, and arms of a stressed or tuned roster, have their own"):
        ArmSpec(name="GRPO", algorithm="grpo", recipe={"lr": 0.0})


def test_an_arm_with_a_backend_of_its_own_is_a_warning_and_nothing_else_may_differ(tmp_path: Path) -> None:
    own = ArmSpec(name="GRPO int8", algorithm="grpo", roster="stressed", backend={"engine": {"dtype": "int8"}})
    write_fake_study(tmp_path / "s", ["GRPO", own], [0, 1], 4)
    for run in read_study(tmp_path / "s").of("GRPO int8"):
        edit(run.path / "spec.json", lambda data: data["backend"]["engine"].update(dtype="int8"))
        edit(run.path / "result.json", lambda data: data["provenance"].update(engine=PROVENANCE["engine"]))
    found = findings(tmp_path / "s")
    assert [c for c, f in found.items() if f.level != "PASS"] == ["shared engine and precision"]
    assert found["shared engine and precision"].level == "WARN"
    assert "GRPO int8: engine.dtype = int8" in found["shared engine and precision"].measured
    for run in read_study(tmp_path / "s").of("GRPO int8"):
        edit(run.path / "spec.json", lambda data: data["backend"].update(attention="eager"))
    assert findings(tmp_path / "s")["same backend"].level == "INVALID", "only what it declares"


def test_an_arm_in_a_precision_of_its_own_has_another_fingerprint_of_the_same_weights(tmp_path: Path) -> None:
    own = ArmSpec(name="GRPO bf16", algorithm="grpo", roster="stressed", backend={"dtype": "bfloat16"})
    write_fake_study(tmp_path / "s", ["GRPO", own], [0, 1], 4)
    for run in read_study(tmp_path / "s").runs:
        rough = run.spec.arm == "GRPO bf16"
        edit(run.path / "spec.json", lambda data, r=rough: data["backend"].update(dtype="bfloat16" if r else "float32"))
        edit(run.path / "result.json", lambda data, r=rough: data["provenance"].update(model_sha256="b" if r else "m"))
    found = findings(tmp_path / "s")
    assert [c for c, f in found.items() if f.level != "PASS"] == ["shared engine and precision"]
    setup = {row["what"]: row["state"] for row in shared_setup(read_study(tmp_path / "s"))}
    assert setup["initial weights, within each seed pair"] == "same"


def test_the_noise_floor() -> None:
    assert noise_floor([], 0.02) is None
    for changes, level in (([0.0, -0.01], "PASS"), ([0.001, -0.02], "WARN")):
        found = noise_floor(changes, 0.02)
        assert found is not None
        assert found.level == level
