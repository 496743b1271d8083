"""A sequence clip range that does not fit the measured drift: said, recorded, survives a resume, changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness.run
from harness.core.results import read_run
from harness.run import INTERRUPTED, _Run, main
from harness.train import checkpoint
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

TIGHT = {"surrogate.low": 3e-7, "surrogate.high": 4e-7}


def spec_of(arm: str = "gspo", overrides: dict[str, Any] | None = None) -> Any:
    return run_spec(arm, steps=3, eval={"final_prompts": 4}).model_copy(
        update={"overrides": run_spec(arm).overrides | (overrides or {})}
    )


def test_it_warns_and_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(overrides=TIGHT)
    whole = make_folder(spec, tmp_path / "whole")
    assert main([str(whole)]) == 0
    assert capsys.readouterr().err.count("warning: gspo: clip-range: surrogate.high=4e-07 is") == 1
    result = read_run(whole).result
    assert result is not None
    assert (result.status, result.validity) == ("completed", "WARN")
    [reason] = result.validity_reasons
    assert "almost every response is clipped" in reason

    stopped = make_folder(spec, tmp_path / "stopped")
    check = _Run._check_range

    def stop_after_two(self: Any, outcome: Any) -> None:
        check(self, outcome)
        self.stop = outcome.progress.step == 2

    with monkeypatch.context() as patch:
        patch.setattr(harness.run._Run, "_check_range", stop_after_two)
        assert main([str(stopped)]) == INTERRUPTED
    assert checkpoint.steps(stopped / "checkpoints")
    assert main([str(stopped)]) == 0
    assert capsys.readouterr().err.count("warning: gspo") == 1, "measured once"
    assert numbers_of(stopped) == numbers_of(whole)


def test_the_warning_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(overrides=TIGHT)
    told, silent = (make_folder(spec, tmp_path / name) for name in ("told", "silent"))
    assert main([str(told)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(harness.run, "range_warning", lambda *_: None)
        assert main([str(silent)]) == 0
    a, b = numbers_of(told), numbers_of(silent)
    assert (a["result"].pop("validity"), b["result"].pop("validity")) == ("WARN", "PASS")
    assert a["result"].pop("validity_reasons")
    assert not b["result"].pop("validity_reasons")
    for side in (a, b):
        side["result"].pop("validity_findings")
    assert a == b


def test_a_calibrated_range_and_a_token_ratio_pass(tmp_path: Path) -> None:
    for arm in ("gspo_calibrated", "grpo"):
        folder = make_folder(spec_of(arm), tmp_path / arm)
        assert main([str(folder)]) == 0
        result = read_run(folder).result
        assert result is not None
        assert (result.validity, result.validity_reasons) == ("PASS", ())
