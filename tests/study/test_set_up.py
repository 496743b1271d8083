"""The canary arm, arms in the bracket of what they read, and the set-up on the live line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.results import VALIDITY, Finding, ValidityRecord, to_json
from harness.core.spec import BackendSpec
from harness.models.recipes import held_out, recipe
from harness.study.build import Choices, Planned, build, run_specs
from harness.study.compare import PlannedRun
from harness.study.live import LiveView, line_of, setup_of
from tests.fakes.small_runs import run_spec

SMALL = Choices(preset="quick", arms=("grpo", "gspo"), seeds=(0, 1), budget={"steps": 3})


def planned(**changes: object) -> Planned:
    return build(replace(SMALL, **changes), recipe, held_out, lambda spec: BackendSpec(threads=1))  # type: ignore[arg-type]


def test_the_canary_is_grpo_without_a_learning_rate() -> None:
    found = planned(controls=("canary_lr0",)).spec
    canary = next(a for a in found.arms if a.bracket == "control")
    assert (canary.name, canary.algorithm, canary.recipe) == ("Canary, lr 0", "grpo", {"lr": 0.0})
    runs = {r.arm: r for r in run_specs(found) if r.seed == 0}
    assert runs["Canary, lr 0"].recipe == runs["GRPO"].recipe.model_copy(update={"lr": 0.0})
    assert runs["GRPO"].recipe == found.recipe
    assert runs["Canary, lr 0"].overrides == runs["GRPO"].overrides


def test_an_override_moves_an_arm_to_the_bracket_of_what_it_reads() -> None:
    found = planned(sets=("GRPO:advantage=process",))
    brackets = {a.name: a.bracket for a in found.spec.arms}
    assert brackets == {"GRPO": "dense", "GSPO": "outcome"}
    assert any("GRPO reads rewards for parts of a response" in w for w in found.warnings)
    back = planned(arms=("grpo", "grpo_process"), sets=("GRPO process:advantage=group",))
    assert {a.bracket for a in back.spec.arms} == {"outcome"}
    assert any("reads the outcome only" in w for w in back.warnings)


def write(folder: Path, level: str) -> None:
    finding = Finding(check="ends", level="PASS", measured="m", limit="l", why="w")
    bad = [finding.model_copy(update={"check": c, "level": level}) for c in ("verifier", "prompt")]
    found = [finding, *(bad if level != "PASS" else [])]
    record = ValidityRecord(run_id="r", validity=level, findings=tuple(found))  # type: ignore[arg-type]
    (folder / VALIDITY).write_text(to_json(record))


def test_the_live_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = PlannedRun(spec=run_spec(), folder=tmp_path, done=False)
    assert setup_of(tmp_path) == ""
    (tmp_path / VALIDITY).write_text('{"validity":')
    assert setup_of(tmp_path) == "", "half a file"
    write(tmp_path, "PASS")
    assert line_of(run).setup == ""
    view = LiveView([run], 1)
    view({run.spec.run_id: "running"})
    assert "set-up" not in capsys.readouterr().err
    write(tmp_path, "WARN")
    view({run.spec.run_id: "running"})
    view({run.spec.run_id: "running"})
    assert capsys.readouterr().err.count("set-up grpo, seed 0: WARN verifier, prompt") == 1
    write(tmp_path, "INVALID")
    assert line_of(run).setup == "INVALID verifier, prompt"
    view({run.spec.run_id: "done"})
    assert "set-up grpo, seed 0: INVALID verifier, prompt" in capsys.readouterr().err
