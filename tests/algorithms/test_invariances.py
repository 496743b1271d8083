"""What must not matter: row order, padding, group labels, garbage under the mask, the split into micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.arms import ARMS, build_arm
from algorithms.parts.advantages import Group
from harness.core.algorithm import Algorithm, override
from tests.algorithms.batches import Batch, advantages, loss_and_gradient, ragged

few = settings(max_examples=12, deadline=None)
SKIPPED = ("gfpo", "base")  # the same records as gfpo_shortest and (for the loss) grpo
RECORDS = [
    pytest.param(build_arm(name, roster), id=f"{name}-{roster}")
    for name in ARMS
    if name not in SKIPPED
    for roster in ("published", "matched")
]
EXTRA = [
    pytest.param(override(build_arm("grpo"), {"aggregate": name, **more}), id=f"grpo-{name}-{len(more)}")
    for name, more in (
        ("token-mean", {"aggregate.scope": "group"}),
        ("seq-mean-token-sum", {}),
        ("seq-mean-token-sum-norm", {"aggregate.length": 32.0}),
    )
]
every = pytest.mark.parametrize("algorithm", [*RECORDS, *EXTRA])


def distinct(batch: Batch) -> Batch:
    """Rewards and draws without ties, so that a selection does not depend on row order."""
    order = torch.arange(len(batch.reward), dtype=torch.float64)
    return replace(batch, reward=batch.reward + 1e-3 * order)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@every
@few
@given(batch=ragged, seed=st.integers(0, 99))
def test_row_order(algorithm: Algorithm, batch: Batch, seed: int) -> None:
    batch = distinct(batch)
    if algorithm.selection.kind in ("shortest", "adaptive"):  # equal lengths fall back on the row index
        algorithm = override(algorithm, {"selection": "token_efficiency"})
        batch = replace(batch, reward=batch.reward + 1)
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed))
    adv, moved = advantages(algorithm, batch), advantages(algorithm, batch.rows(order))
    same(moved, adv[order])
    loss, grad, _ = loss_and_gradient(algorithm, batch, adv)
    loss2, grad2, _ = loss_and_gradient(algorithm, batch.rows(order), moved)
    same(loss2, loss)
    same(grad2, grad[order])


@every
@few
@given(batch=ragged, extra=st.integers(1, 3))
def test_padding_width(algorithm: Algorithm, batch: Batch, extra: int) -> None:
    wide, width = batch.widened(extra, 7.0), batch.mask.shape[1]
    adv = advantages(algorithm, batch)
    if not algorithm.rewards or algorithm.rewards[0].kind != "overlong":  # the helper's limit is the width
        same(advantages(algorithm, wide)[:, :width], adv)
    padded = torch.cat([adv, torch.zeros(len(adv), extra, dtype=adv.dtype)], 1)
    loss, grad, _ = loss_and_gradient(algorithm, batch, adv)
    loss2, grad2, _ = loss_and_gradient(algorithm, wide, padded)
    same(loss2, loss)
    same(grad2[:, :width], grad)


@every
@few
@given(batch=ragged, garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_garbage(algorithm: Algorithm, batch: Batch, garbage: float) -> None:
    dirty = batch.with_garbage(garbage)
    adv = advantages(algorithm, batch)
    assert torch.equal(advantages(algorithm, dirty), adv)
    loss, grad, _ = loss_and_gradient(algorithm, batch, adv)
    loss2, grad2, outs = loss_and_gradient(algorithm, dirty, adv.masked_fill(~batch.mask, garbage))
    assert torch.equal(loss2, loss)
    assert torch.equal(grad2, grad)
    assert not grad2[~batch.mask].any()
    assert outs[0].ratio.isfinite().all()


@every
@few
@given(batch=ragged, parts=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_micro_batches_add_up(algorithm: Algorithm, batch: Batch, parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(batch.mask), generator=generator)
    cuts = torch.randint(0, len(order) + 1, (parts - 1,), generator=generator).sort()[0].tolist()
    adv = advantages(algorithm, batch)
    loss, grad, (whole,) = loss_and_gradient(algorithm, batch, adv)
    split = tuple(torch.tensor_split(order, cuts))
    loss2, grad2, outs = loss_and_gradient(algorithm, batch, adv, split)
    same(loss2, loss)
    same(grad2, grad)
    for name, value in whole.penalties.items():
        same(torch.stack([out.penalties[name] for out in outs]).sum(), value)


@few
@given(batch=ragged, seed=st.integers(0, 99))
@pytest.mark.parametrize("arm", ["grpo", "gspo_token_process", "gfpo_shortest", "grpo_batch_std"])
def test_group_labels(arm: str, batch: Batch, seed: int) -> None:
    algorithm = build_arm(arm)
    labels = torch.randperm(batch.num_groups, generator=torch.Generator().manual_seed(seed))
    same(advantages(algorithm, replace(batch, group=labels[batch.group])), advantages(algorithm, batch))


@few
@given(batch=ragged, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@pytest.mark.parametrize("scope", ["group", "batch"])
def test_reward_shift_and_scale(scope: str, batch: Batch, shift: float, scale: float) -> None:
    part = Group.model_validate({"eps": 1e-15, "scope": scope})
    algorithm = build_arm("grpo").model_copy(update={"advantage": part})
    moved = replace(batch, reward=batch.reward * scale + shift)
    torch.testing.assert_close(advantages(algorithm, moved), advantages(algorithm, batch), rtol=1e-6, atol=1e-6)
