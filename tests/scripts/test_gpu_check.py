"""The script for GPU machines, run on what there is here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts import gpu_check


def test_it_runs_everything_on_a_small_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: gpu_check.SWITCHES[name] for name in ("all on", "activations recomputed", "all off")}
    monkeypatch.setattr(gpu_check, "SWITCHES", few)
    monkeypatch.setattr(gpu_check, "REPEATS", 1)
    monkeypatch.setattr(gpu_check, "SIX", ("ppo", "grpo"))
    target = tmp_path / "report.md"
    assert gpu_check.main(["--device", "cpu", "--small", "--write", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    for arm in gpu_check.SIX:
        assert text.count(f"* {arm}: completed") == 2
    for name in gpu_check.SWITCHES:
        assert text.count(name) >= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "report.md"
    assert gpu_check.main(["--write", str(target)]) == 2
    assert not target.exists()
    assert "nothing was measured" in capsys.readouterr().err
