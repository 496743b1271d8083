"""What a selection remembers from batch to batch: checkpointed, recorded with the batch, begun anew elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness.saving
from harness.assemble import assemble
from harness.core.runwriter import RunWriter
from harness.microscope.replay import Request, replay
from harness.run import main
from harness.train import checkpoint
from harness.train.loop import Progress, one_step
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

DIGEST = {"selection.warmup_prompts": 2, "selection.tdigest": 10}
EXACT = {"selection.warmup_prompts": 2}
needs_fastdigest = pytest.mark.system("python:fastdigest")


class Killed(BaseException):
    """The process is gone."""


@needs_fastdigest
def test_a_killed_run_with_a_digest_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = run_spec("gfpo_adaptive", steps=5, eval={"final_prompts": 4}, overrides=DIGEST)
    whole, killed = (make_folder(spec, tmp_path / name) for name in ("whole", "killed"))
    assert main([str(whole)]) == 0
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.saving, "SAVE_SHARE", 1e9)
    write = RunWriter.row

    def hook(self: RunWriter, row: Any) -> None:
        if row["step"] == 4:
            raise Killed
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "row", hook)
        with pytest.raises(Killed):
            main([str(killed)])
    assert main([str(killed)]) == 0
    assert numbers_of(killed) == numbers_of(whole)
    states = [json.loads((checkpoint.steps(f / "checkpoints")[-1] / "state.json").read_text()) for f in (whole, killed)]
    one, two = (state["progress"] for state in states)
    assert one["history"] == two["history"]
    assert (one["history_of"], one["history"][0]) == ("tdigest_10", 20.0)  # prompts: more than it has centroids


@pytest.mark.parametrize(
    ("changes", "state"),
    [(EXACT, "group_means"), pytest.param(DIGEST, "tdigest_10", marks=needs_fastdigest)],
)
def test_a_replay_selects_what_the_run_selected(tmp_path: Path, changes: dict[str, Any], state: str) -> None:
    """The rows kept at a later step depend on all prompts before it, which the rollout file has."""
    folder = make_folder(run_spec("gfpo_adaptive", steps=4, eval={"final_prompts": 4}, overrides=changes), tmp_path)
    assert main([str(folder)]) == 0
    recorded = load_file(folder / "rollouts" / "00000004.safetensors")
    assert len(recorded[f"selection.{state}"]) >= 3 * 4
    mine = {f"GFPO adaptive:{path}": value for path, value in changes.items()}
    record, full = replay(Request(folder=folder, step=4, arms=("gfpo_adaptive",), changes=mine))
    assert torch.equal(full["GFPO adaptive.kept"], recorded["kept"])
    assert any(f"as the run recorded them ({state})" in note for note in record.notes)
    forgetful = {**recorded, f"selection.{state}": torch.zeros(0, dtype=torch.float64)}
    save_file(forgetful, folder / "rollouts" / "00000004.safetensors")
    _, without = replay(Request(folder=folder, step=4, arms=("gfpo_adaptive",), changes=mine))
    assert not torch.equal(without["GFPO adaptive.kept"], recorded["kept"]), "else this test shows nothing"


def test_files_of_a_selection_without_memory_hold_none(tmp_path: Path) -> None:
    folder = make_folder(run_spec("gfpo", steps=1, eval={"final_prompts": 4}), tmp_path)
    assert main([str(folder)]) == 0
    assert not [k for k in load_file(folder / "rollouts" / "00000001.safetensors") if k.startswith("selection.")]


@needs_fastdigest
def test_a_schedule_to_another_state_begins_anew() -> None:
    """Exact means read as a digest would be nonsense; a selection without memory in between forgets nothing."""
    parts = assemble(run_spec("gfpo_adaptive", overrides=EXACT))
    first = one_step(parts.trainer, Progress(), 0.0).progress
    assert (first.history_of, len(first.history)) == ("group_means", 4)
    digest = assemble(run_spec("gfpo_adaptive", overrides=DIGEST))
    second = one_step(digest.trainer, first, 0.0)
    assert second.history == {"tdigest_10": ()}
    assert (second.progress.history_of, second.progress.history[0]) == ("tdigest_10", 4.0)
    plain = one_step(assemble(run_spec("gfpo")).trainer, first, 0.0)
    assert plain.history == {}
    assert (plain.progress.history_of, plain.progress.history) == ("group_means", first.history)


def test_a_checkpoint_from_before_histories_had_names_is_read(tmp_path: Path) -> None:
    parts = assemble(run_spec("gfpo_adaptive", overrides=EXACT))
    progress = one_step(parts.trainer, Progress(), 0.0).progress
    saved = checkpoint.save(tmp_path, progress, parts.optimizers, {})
    state = json.loads((saved / "state.json").read_text())
    del state["progress"]["history_of"]
    (saved / "state.json").write_text(json.dumps(state))
    assert checkpoint.load(saved, parts.optimizers)[0] == progress
