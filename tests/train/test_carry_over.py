"""Groups carried over to the next batch: what they are trained with, what they cost, and what a checkpoint keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import harness.saving
from harness.assemble import Assembly, assemble
from harness.core.results import STEPS, read_lines
from harness.core.runwriter import RunWriter
from harness.core.types import Credit, Grade, Prompt, RolloutGroup, Trajectory
from harness.records import step_row
from harness.rollout.collate import collate
from harness.run import main
from harness.train import checkpoint
from harness.train.carried import pack, unpack
from harness.train.loop import Progress, StepOutcome, count_tokens, one_step
from harness.train.networks import as_rows, no_grad_logps
from tests.fakes.small_runs import make_folder, numbers_of, run_spec

CARRY = {"overrides": {"admission.carry_over": True}}


def two_steps(parts: Assembly) -> tuple[StepOutcome, dict[str, torch.Tensor], StepOutcome]:
    """The first step that leaves a surplus, the weights after it, and the step that trains on the surplus."""
    first = one_step(parts.trainer, Progress(), 0.0)
    while not first.progress.carried:
        assert first.progress.step < 6, "choose another seed: no surplus"
        first = one_step(parts.trainer, first.progress, 0.0)
    between = {k: v.clone() for k, v in parts.trainer.nets.policy.state_dict().items()}
    return first, between, one_step(parts.trainer, first.progress, 0.0)


def test_old_log_probs_are_those_of_the_weights_at_the_start_of_the_batch() -> None:
    """For carried rows too, in every mini-batch; version and behaviour log-probs stay those of their sampling."""
    parts = assemble(run_spec("dapo", recipe={"prompts_per_step": 6, "lr": 3e-3}, **CARRY))
    first, between, second = two_steps(parts)
    ready = second.prepared
    assert ready is not None
    batch = ready.batch
    rows = sum(len(g.trajectories) for g in first.progress.carried)
    stale = torch.arange(batch.num_rows) < rows
    assert torch.equal(~batch.fresh, stale)
    assert batch.policy_version is not None
    assert batch.policy_version[stale].unique().tolist() == [first.progress.optimizer_steps - 4]
    assert batch.policy_version[~stale].unique().tolist() == [first.progress.optimizer_steps]
    kept = collate(first.progress.carried)
    assert torch.equal(batch.behaviour_logp[stale][batch.mask[stale]], kept.behaviour_logp[kept.mask])

    other = assemble(run_spec("dapo"))
    other.trainer.nets.policy.load_state_dict(between)
    want = no_grad_logps(other.trainer.nets, other.trainer.nets.policy, as_rows(batch, 0), range(batch.num_rows))
    assert second.old_logp is not None
    for use in (stale & ready.contributing, ~stale & ready.contributing):
        assert use.any()
        mask = batch.mask & use[:, None]
        torch.testing.assert_close(second.old_logp[mask], want[mask], atol=1e-5, rtol=0)
    drift = (want - batch.behaviour_logp).abs()
    assert drift[batch.mask & stale[:, None]].max() > 1e-2, "the older weights were others"
    assert drift[batch.mask & ~stale[:, None]].max() < 1e-4
    opening = second.traces[0]
    assert opening.on_policy
    assert torch.equal(opening.logp, opening.old_logp), "every ratio of the first mini-batch is 1"
    assert any(t.fresh is not None and not t.fresh.all() for t in second.traces)


def test_tokens_count_once_and_metrics_describe_what_was_sampled() -> None:
    parts = assemble(run_spec("dapo", recipe={"prompts_per_step": 6, "lr": 3e-3}, **CARRY))
    first, _, second = two_steps(parts)
    carried, gathered = first.progress.carried, second.gathered
    before, row = step_row(first, parts), step_row(second, parts)
    sampled = count_tokens(gathered.sampled)
    assert row["budget/sampled_tokens"] == row["sampled_tokens_cum"] - before["sampled_tokens_cum"] == sampled
    assert row["budget/prompts"] == len(gathered.sampled) == 6 * gathered.rounds
    assert row["budget/carried_prompts"] == len(carried) > 0
    lengths = [len(t.response_ids) for g in gathered.sampled for t in g.trajectories]
    assert row["len/mean"] == pytest.approx(sum(lengths) / len(lengths))
    scores = [t.grade.score for g in gathered.sampled for t in g.trajectories]
    assert row["reward/mean"] == pytest.approx(sum(scores) / len(scores))
    assert row["mismatch/abs_dlogp_max"] < 1e-4, "the sampler's disagreement, not the drift of carried rows"
    plain = assemble(run_spec("dapo", recipe={"prompts_per_step": 6}))
    assert step_row(one_step(plain.trainer, Progress(), 0.0), plain)["budget/carried_prompts"] is None


def test_the_correction_weighs_carried_rows_only() -> None:
    """What was sampled by the policy at the start of the batch has weight 1."""
    overrides = {**CARRY["overrides"], "correction": "importance", "correction.cap": 5.0}
    parts = assemble(run_spec("dapo", recipe={"prompts_per_step": 6, "lr": 3e-3}, overrides=overrides))
    _, _, second = two_steps(parts)
    assert second.prepared is not None
    batch = second.prepared.batch
    assert second.old_logp is not None
    weights = parts.algorithm.correction(second.old_logp, batch.behaviour_logp, batch.mask)
    use = batch.mask & second.prepared.contributing[:, None]
    fresh = batch.fresh[:, None]
    assert (weights[use & fresh] - 1).abs().max() < 1e-3
    assert (weights[use & ~fresh] - 1).abs().max() > 1e-2


texts = st.text(max_size=6)
floats = st.floats(width=64)


@st.composite
def trajectories(draw: Any, prompt: Prompt) -> Trajectory:
    size = draw(st.integers(0, 5))

    def many(values: Any) -> Any:
        return st.lists(values, min_size=size, max_size=size).map(tuple)

    credit = st.builds(
        Credit, turn=st.integers(0, 3), span=st.tuples(st.integers(0, 9), st.integers(0, 9)), name=texts, reward=floats
    )
    grade = st.builds(
        Grade, score=floats, correct=st.booleans(), components=st.dictionaries(texts, floats, max_size=2),
        extracted=st.none() | texts, why=texts, credit=st.lists(credit, max_size=2).map(tuple),
    )  # fmt: skip
    pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**40)), max_size=2).map(tuple)
    return Trajectory(
        prompt=prompt,
        sample=draw(st.integers(0, 7)),
        prompt_ids=draw(st.lists(st.integers(0, 2**31), max_size=4).map(tuple)),
        response_ids=draw(many(st.integers(0, 2**31))),
        loss_mask=draw(many(st.booleans())),
        logp=draw(many(floats)),
        entropy=draw(st.none() | many(floats)),
        segments=draw(pairs),
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        text=draw(texts),
        grade=draw(grade),
        credit=draw(st.lists(st.tuples(st.integers(0, 9), floats), max_size=2).map(tuple)),
        routes=draw(st.none() | st.integers(1, 4).map(lambda n: torch.arange(n * 6, dtype=torch.int16).view(n, 3, 2))),
    )


@st.composite
def graded(draw: Any) -> RolloutGroup:
    messages = draw(st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=2))
    prompt = Prompt(id=draw(texts), messages=tuple(messages), answer=None, difficulty=draw(st.none() | texts))
    rows = draw(st.lists(trajectories(prompt), max_size=3))
    return RolloutGroup(prompt=prompt, trajectories=tuple(rows))


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(graded(), max_size=3))
def test_packing_is_exact(groups: list[RolloutGroup]) -> None:
    """NaN, infinities and signed zeros included, hence the comparison of what is printed."""
    assert repr(unpack(*pack(groups))) == repr(tuple(groups))


def test_an_answer_is_not_kept() -> None:
    prompt = Prompt(id="a", messages=(), answer=object())
    [found] = unpack(*pack([RolloutGroup(prompt=prompt, trajectories=())]))
    assert found.prompt == replace(prompt, answer=None)


def test_a_checkpoint_keeps_carried_groups_bit_for_bit(tmp_path: Path) -> None:
    spec = run_spec("dapo", recipe={"prompts_per_step": 6}, **CARRY)
    parts = assemble(spec)
    first, _, _ = two_steps(parts)
    parts = assemble(spec)  # at the weights of the beginning: only the progress matters here
    saved = checkpoint.save(tmp_path, first.progress, parts.optimizers, {})
    other = assemble(spec)
    found, _ = checkpoint.load(saved, other.optimizers)
    assert found == first.progress
    one, two = (replace(one_step(p.trainer, found, 0.5).progress, wallclock_s=0.0) for p in (parts, other))
    assert one == two


class Killed(BaseException):
    """The process is gone."""


def runs_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Path, Path]:
    """A run from beginning to end, and one that is killed before the row of the step that trains on a surplus."""
    spec = run_spec("dapo", steps=5, recipe={"prompts_per_step": 6}, eval={"final_prompts": 4}, **changes)
    whole, killed = (make_folder(spec, tmp_path / name) for name in ("whole", "killed"))
    assert main([str(whole)]) == 0
    rows = [*read_lines(whole / STEPS)]
    using = next(row["step"] for row in rows if row["budget/carried_prompts"])
    monkeypatch.setattr(harness.saving, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(harness.saving, "SAVE_SHARE", 1e9)
    write = RunWriter.row

    def hook(self: RunWriter, row: Any) -> None:
        if row["step"] == using:
            raise Killed
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "row", hook)
        with pytest.raises(Killed):
            main([str(killed)])
    [newest] = checkpoint.steps(killed / "checkpoints")[-1:]
    assert (newest / "carried.safetensors").exists(), "the kill came between a surplus and its use"
    assert main([str(killed)]) == 0
    return whole, killed


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = runs_of(tmp_path, monkeypatch, **CARRY)
    assert numbers_of(killed) == numbers_of(whole)
    rows = [*read_lines(whole / STEPS)]
    assert sum(row["budget/sampled_tokens"] for row in rows) == rows[-1]["sampled_tokens_cum"]
    found = load_file(whole / "rollouts" / "00000005.safetensors")
    again = load_file(killed / "rollouts" / "00000005.safetensors")
    assert found.keys() == again.keys() >= {"policy_version"}
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_a_start_takes_the_surplus_over_on_the_same_task_only(tmp_path: Path) -> None:
    """Continued on the same task, it is the longer run; elsewhere, the groups are answers to other questions."""
    recipe = {"prompts_per_step": 6}
    donor = make_folder(run_spec("dapo", steps=2, recipe=recipe, **CARRY), tmp_path / "donor")
    assert main([str(donor)]) == 0
    assert checkpoint.steps(donor / "checkpoints")[-1].joinpath("carried.json").exists(), "choose another seed"
    start = {"run": str(donor), "checkpoint": "last", "reset": []}
    carried = []
    for params in ({}, {"max_ops": 5}):
        spec = run_spec("dapo", steps=3, recipe=recipe, start=start, task={"params": params}, **CARRY)
        folder = make_folder(spec, tmp_path / f"next{len(carried)}")
        assert main([str(folder)]) == 0
        carried.append(next(iter(read_lines(folder / STEPS)))["budget/carried_prompts"])
    assert carried[0] > 0
    assert carried[1] == 0
