"""Episodes of several turns on the embedded model: what is sampled is what is trained on, replies are context only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.assemble import Assembly, assemble
from harness.core.results import STEPS, read_lines
from harness.core.spec import RunSpec
from harness.core.types import RolloutBatch
from harness.models.recipes import recipe
from harness.rollout.collate import collate
from harness.run import execute
from harness.train.networks import as_rows, no_grad_logps
from tests.fakes.small_runs import make_folder, run_spec

PROMPTS, SAMPLES = 6, 4


def spec_of(arm: str, game: str = "guess", steps: int = 2) -> RunSpec:
    return run_spec(
        arm, steps=steps, task={"name": game}, model={"name": "tiny-turns"},
        recipe={**recipe("tiny-turns"), "prompts_per_step": 4},
    )  # fmt: skip


@pytest.fixture(scope="module", params=["guess", "calculator"])
def played(request: pytest.FixtureRequest) -> tuple[Assembly, RolloutBatch]:
    parts = assemble(spec_of("grpo_turns", request.param))
    prompts = [parts.task.item("train", i) for i in range(PROMPTS)]
    return parts, collate(parts.collector.collect(prompts, SAMPLES, (0, 0)).groups)


def test_the_trainer_gives_the_samplers_log_probs_in_every_turn(played: tuple[Assembly, RolloutBatch]) -> None:
    """So a later turn is scored in the very context in which it was sampled: own tokens, end tokens and replies."""
    parts, batch = played
    nets = parts.trainer.nets
    found = no_grad_logps(nets, nets.policy, as_rows(batch, nets.pad_id), range(batch.num_rows))
    assert float((found - batch.behaviour_logp)[batch.mask].abs().max()) < 1e-4
    assert batch.turns is not None
    turns = torch.bincount(batch.turns.row)
    assert turns.max() > 1, "some episodes have a reply"
    assert not found[~batch.mask].any()
    earned = torch.zeros(batch.num_rows).index_add(0, batch.turns.row, batch.turns.reward)
    torch.testing.assert_close(earned, batch.reward)


def test_an_episode_reads_as_it_was_played(played: tuple[Assembly, RolloutBatch]) -> None:
    parts, batch = played
    row = max(batch.trajectories, key=lambda t: len(t.turns))
    task, start = parts.task, 0
    items = {item.id: item for item in (task.item("train", i) for i in range(PROMPTS))}
    state = task.start(items[row.prompt.id])
    for end, _ in row.turns:
        said = row.response_ids[start : end + 1]
        assert all(row.loss_mask[start : end + 1])
        state, reply = task.step(state, parts.codec.decode(said), "stop")
        start = end + 1
        while start < len(row.loss_mask) and not row.loss_mask[start]:
            start += 1
        shown = parts.codec.decode(row.response_ids[end + 1 : start])
        assert shown == ("" if start == len(row.loss_mask) else reply.messages[0]["content"])  # type: ignore[union-attr]


def test_an_episode_does_not_depend_on_its_batch(played: tuple[Assembly, RolloutBatch]) -> None:
    """A prompt alone gives the episodes that it gave among others: every turn draws from a key of its own."""
    parts, batch = played
    prompt = parts.task.item("train", 1)
    alone = collate(parts.collector.collect([prompt], SAMPLES, (0, 0)).groups)
    mine = [t for t in batch.trajectories if t.prompt.id == prompt.id]
    assert [t.response_ids for t in alone.trajectories] == [t.response_ids for t in mine]


@pytest.mark.parametrize("arm", ["gspo_token_turns_calibrated", "ppo_turns", "dapo", "gfpo"])
def test_every_kind_of_algorithm_trains_on_episodes(arm: str, tmp_path: Path) -> None:
    spec = spec_of(arm)
    folder = make_folder(spec, tmp_path)
    execute(spec, folder)
    rows = [*read_lines(folder / STEPS)]
    assert len(rows) == 2
    for row in rows:
        assert row["health/skipped_updates"] == 0
        assert {"reward/component/found", "reward/component/play"} <= row.keys()
        assert row["len/max"] <= 3 * spec.recipe.max_new_tokens
        assert row["mismatch/abs_dlogp_max"] is None or row["mismatch/abs_dlogp_max"] < 1e-3


def test_the_same_again_is_bit_identical(played: tuple[Assembly, RolloutBatch]) -> None:
    parts, batch = played
    prompts = [parts.task.item("train", i) for i in range(PROMPTS)]
    again = collate(parts.collector.collect(prompts, SAMPLES, (0, 0)).groups)
    assert torch.equal(again.response_ids, batch.response_ids)
    assert torch.equal(again.behaviour_logp, batch.behaviour_logp)
    other = replace(parts.collector, temperature=1.5).collect(prompts, SAMPLES, (0, 0)).groups
    assert not torch.equal(collate(other).reward, batch.reward)
