"""Real small runs with a fault of the set-up: named, recorded, resumable; a sound run is judged and left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness.assemble
from harness.core.ports import Sampler
from harness.core.registry import register_task
from harness.core.results import VALIDITY, Finding, RunResult, ValidityRecord, read_run
from harness.core.spec import RunSpec
from harness.core.types import FinishReason, Grade, Prompt
from harness.gate import Gate
from harness.run import INTERRUPTED, execute, main
from tasks.chain import ChainTask
from tests.fakes import wrong_samplers as wrong
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

SMALL = {"final_prompts": 4, "prompts": 4, "points": 1}


class AlwaysWrong(ChainTask):
    """`chain` with a verifier that grades everything 0."""

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        return Grade(score=0.0, correct=False, extracted=text, why="wrong")


register_task("always_wrong", lambda argument="", **params: AlwaysWrong())


def result_of(spec: RunSpec, folder: Path) -> RunResult:
    result = execute(spec, folder)
    assert result is not None
    assert result.status == "completed", "validity is apart from the outcome"
    record = ValidityRecord.model_validate_json((folder / VALIDITY).read_text())
    assert (record.validity, record.findings) == (result.validity, result.validity_findings)
    return result


def invalid(result: RunResult) -> dict[str, Finding]:
    return {f.check: f for f in result.validity_findings if f.level == "INVALID"}


def test_a_grader_that_always_says_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(run_spec(steps=1, task={"name": "always_wrong"}, eval=SMALL), tmp_path / "run")
    assert result.validity == "INVALID"
    assert [*invalid(result)] == ["verifier"]
    assert "24 of 24 right responses refused" in result.validity_reasons[0]
    assert "INVALID: grpo: verifier:" in capsys.readouterr().err
    dead = next(f for f in result.validity_findings if f.check == "dead-groups")
    assert dead.level == "WARN", "a consequence here, and on its own no fault"


@pytest.mark.parametrize(
    ("mistake", "checks"),
    [
        (wrong.hotter, {"sampler-trainer", "step-0 ratios"}),
        (wrong.drops_ends, {"ends"}),
        (wrong.one_seed_per_prompt, {"siblings"}),
    ],
)
def test_an_engine_with_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Any, checks: set[str]
) -> None:
    build = harness.assemble.build_sampler

    def spoilt(*arguments: Any) -> Sampler:
        return mistake(build(*arguments))

    monkeypatch.setattr(harness.assemble, "build_sampler", spoilt)
    result = result_of(run_spec(steps=2, eval=SMALL), tmp_path / "run")
    assert checks <= set(invalid(result))


def test_a_limit_that_cuts_every_response(tmp_path: Path) -> None:
    result = result_of(run_spec(steps=1, recipe={"max_new_tokens": 2}, eval=SMALL), tmp_path / "run")
    assert [*invalid(result)] == ["truncation"]


def test_a_learning_rate_below_the_precision_of_the_weights(tmp_path: Path) -> None:
    """Master weights move, the bfloat16 weights that sample do not."""
    changes: dict[str, Any] = {"recipe": {"lr": 1e-12}, "backend": {"dtype": "bfloat16"}, "eval": SMALL}
    result = result_of(run_spec(steps=2, **changes), tmp_path / "run")
    assert [*invalid(result)] == ["weights-moved"]
    assert read_run(tmp_path / "run").steps[-1]["update/rel"] > 0


def test_the_canary_passes_and_shows_no_change(tmp_path: Path) -> None:
    result = result_of(run_spec("canary_lr0", steps=2), tmp_path / "run")
    assert result.validity == "PASS"
    assert result.final_score == result.base_score
    [moved] = [f for f in result.validity_findings if f.check == "weights-moved"]
    assert moved.values == {"lr": 0.0, "moved": 0.0, "updates": 0.0}


def test_findings_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = run_spec(steps=3, recipe={"max_new_tokens": 2}, eval=SMALL)
    whole, stopped = (make_folder(spec, tmp_path / name) for name in ("whole", "stopped"))
    assert main([str(whole)]) == 0
    step = Gate.step

    def stop_after_one(self: Gate, outcome: Any, row: Any, parts: Any) -> None:
        step(self, outcome, row, parts)
        runs[-1].stop = outcome.progress.step == 1

    runs: list[Any] = []
    create = harness.run._Run.__init__

    def created(self: Any, *arguments: Any) -> None:
        create(self, *arguments)
        runs.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(harness.run._Run, "__init__", created)
        patch.setattr(Gate, "step", stop_after_one)
        assert main([str(stopped)]) == INTERRUPTED
    early = ValidityRecord.model_validate_json((stopped / VALIDITY).read_text())
    assert early.validity == "INVALID", "known long before the result is written"
    assert "weights-moved" not in {f.check for f in early.findings}
    assert main([str(stopped)]) == 0
    assert numbers_of(stopped) == numbers_of(whole)
    assert (stopped / VALIDITY).read_text() == (whole / VALIDITY).read_text()


def test_measuring_changes_no_number_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = run_spec(steps=2, eval=SMALL)
    execute(spec, tmp_path / "judged")
    with monkeypatch.context() as patch:
        patch.setattr(Gate, "begin", lambda self, parts: None)
        execute(spec, tmp_path / "unjudged")
    judged, unjudged = numbers_of(tmp_path / "judged"), numbers_of(tmp_path / "unjudged")
    assert len(judged["result"].pop("validity_findings")) > len(unjudged["result"].pop("validity_findings"))
    assert judged == unjudged
