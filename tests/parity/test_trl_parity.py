"""20 optimizer steps on rollouts recorded from TRL's GRPOTrainer end at TRL's weights (README.md beside this file).

The default tests need no TRL; the slow one records anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.bench.parity import MINI_BATCHES, Difference, Replay, difference, prompts_of, replay
from harness.bench.recording import Recording, load
from harness.core.ports import SingleTurnTask
from harness.core.spec import UpdateSpec

FIXTURE = Path(__file__).parent / "grpo_trl_tiny.safetensors"
RELATIVE = 1e-5
NOISE = 2.5e-5  # of the movement: how far TRL is from itself when it pads more


@cache
def recorded() -> Recording:
    return load(FIXTURE)


@cache
def ours() -> Replay:
    return replay(recorded())


def apart(changes: dict[str, Any] | None = None, update: UpdateSpec | None = None) -> Difference:
    found = recorded()
    return difference(replay(found, changes, update).after, found.after, found.before)


def test_weights_agree() -> None:
    found = recorded()
    assert len(found.grad_norms) == 20
    d = difference(ours().after, found.after, found.before)
    print(d)
    assert d.of_movement <= RELATIVE
    assert d.of_weights <= RELATIVE
    assert d.largest <= RELATIVE


def test_every_step_agrees() -> None:
    """Advantages, log-probs before the updates and gradient norms, not only where they lead."""
    found = recorded()
    for rollout, outcome in zip(found.rollouts, ours().outcomes, strict=True):
        assert outcome.prepared is not None
        assert outcome.old_logp is not None
        batch, rows = outcome.prepared.batch, outcome.prepared.contributing
        row_advantage = outcome.prepared.advantages.advantages[:, 0]
        torch.testing.assert_close(row_advantage, torch.tensor(rollout.advantage), rtol=1e-5, atol=1e-6)
        old, theirs = outcome.old_logp[rows], batch.behaviour_logp[rows]
        mask = batch.mask[rows]
        torch.testing.assert_close(old[mask], theirs[mask], rtol=1e-4, atol=1e-4)
    norms = [trace.grad_norm for outcome in ours().outcomes for trace in outcome.traces]
    assert norms == pytest.approx(found.grad_norms, rel=1e-4)
    assert sum(norm > 1 for norm in norms) >= 2, "the recording covers gradient clipping"
    clipped = [bool((t.clipped_low | t.clipped_high).any()) for o in ours().outcomes for t in o.traces]
    assert sum(clipped) >= 10, "the recording covers the clip range"


@pytest.mark.parametrize(
    "changes",
    [
        {"surrogate.high": 0.21},
        {"advantage.eps": 1e-6},
        {"advantage.std": "biased"},
        {"aggregate": "token-mean"},
        {"recipe.betas": [0.9, 0.951]},
        {"recipe.grad_clip": 1.05},
    ],
    ids=str,
)
def test_a_wrong_setting_is_seen(changes: dict[str, Any]) -> None:
    assert apart(changes).of_movement > 4 * NOISE


@pytest.mark.parametrize(
    "update",
    [UpdateSpec(share_prompts=True), UpdateSpec(skip_rows=False, sort_by_length=False, reuse_forward=False)],
    ids=["share_prompts", "plain"],
)
def test_how_the_update_is_computed_does_not_matter(update: UpdateSpec) -> None:
    d = apart({"recipe.micro_batch_tokens": 700}, update)
    assert d.of_movement <= NOISE
    assert d.largest <= RELATIVE


def test_prompts_and_rewards_are_ours() -> None:
    """TRL saw the tokens that our codec makes of our prompts, and the rewards that our task gives."""
    found, parts = recorded(), ours().parts
    task = parts.task
    assert isinstance(task, SingleTurnTask)
    size = found.settings.prompts
    prompts = prompts_of(found.settings)
    for k, rollout in enumerate(found.rollouts):
        mine = prompts[k * size : (k + 1) * size]
        for row, (ids, response, reward) in enumerate(
            zip(rollout.prompt_ids, rollout.response_ids, rollout.reward, strict=True)
        ):
            prompt = mine[row // found.settings.siblings]
            assert parts.codec.encode(prompt.messages) == ids
            stopped = response[-1] in parts.model.eos_ids
            grade = task.grade(prompt, parts.codec.decode(response), "stop" if stopped else "length")
            assert grade.score == reward


def test_mini_batches_mix_groups() -> None:
    """TRL shuffles rows, so that a mini-batch holds parts of groups: denominators must not depend on whole groups."""
    found = recorded()
    for rollout in found.rollouts:
        rows = [r for mini in rollout.mini_batches for r in mini]
        assert len(rollout.mini_batches) == MINI_BATCHES
        assert sorted(rows) == list(range(found.settings.rows))
        assert any(len({r // found.settings.siblings for r in mini}) > 8 for mini in rollout.mini_batches)


@pytest.mark.slow
@pytest.mark.system("python:trl")
@pytest.mark.parametrize("seed", [0, 1])
def test_live(seed: int) -> None:
    """The same against the installed TRL, at other seeds."""
    from harness.bench.parity import record, trl_settings

    found = record(trl_settings(rollouts=5, seed=seed))
    d = difference(replay(found).after, found.after, found.before)
    print(d)
    assert d.of_weights <= RELATIVE
    assert d.largest <= RELATIVE
    assert d.of_movement <= 2 * NOISE
