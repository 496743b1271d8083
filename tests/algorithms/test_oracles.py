"""The parts against loop-style re-statements of the papers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.arms import build_arm
from algorithms.parts.advantages import Gae, Group, Process, mean_of_later_steps
from harness.core.algorithm import override
from harness.core.parts import AdvantageInput
from tests.algorithms.batches import Batch, advantages, loss_and_gradient, ragged
from tests.oracles import loops

few = settings(max_examples=25, deadline=None)


def lists(x: Tensor, mask: Tensor) -> list[list[float]]:
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def agree(actual: Tensor, mask: Tensor, expected: Sequence[Sequence[float] | loops.Array]) -> None:
    for row, want in zip(lists(actual, mask), expected, strict=True):
        np.testing.assert_allclose(row, want, rtol=1e-8, atol=1e-11)


def view_of(batch: Batch, **more: Tensor) -> AdvantageInput:
    return AdvantageInput(
        reward=batch.reward,
        mask=batch.mask,
        group=batch.group,
        num_groups=batch.num_groups,
        kept=torch.ones_like(batch.correct),
        credit=batch.credit,
        **more,
    )


@few
@given(batch=ragged, biased=st.booleans())
def test_group_advantage(batch: Batch, biased: bool) -> None:
    part = Group(std="biased" if biased else "unbiased", eps=1e-4)
    want = loops.group_advantages(batch.reward.tolist(), batch.group.tolist(), 0 if biased else 1, 1e-4)
    rows = [[a] * n for a, n in zip(want, batch.mask.sum(1).tolist(), strict=True)]
    agree(part(view_of(batch)).advantages, batch.mask, rows)


@few
@given(batch=ragged, weight=st.sampled_from([0.5, 1.0]))
def test_process_advantage(batch: Batch, weight: float) -> None:
    outcome = loops.group_advantages(batch.reward.tolist(), batch.group.tolist(), 1, 1e-6)
    step_rows, ends = batch.credit.row.tolist(), batch.credit.end.tolist()
    groups = [int(batch.group[row]) for row in step_rows]
    z = loops.group_advantages(batch.credit.reward.tolist(), groups, 1, 1e-6)
    expected = []
    for i, base in enumerate(outcome):
        steps = [(end, value) for row, end, value in zip(step_rows, ends, z, strict=True) if row == i]
        later = loops.later_steps(steps, batch.mask.shape[1])
        expected.append([base + weight * x for x, keep in zip(later, batch.mask[i].tolist(), strict=True) if keep])
    agree(Process(weight=weight)(view_of(batch)).advantages, batch.mask, expected)
    assert mean_of_later_steps(batch.credit.reward, view_of(batch)).shape == batch.mask.shape


@few
@given(batch=ragged, gamma=st.sampled_from([1.0, 0.9]), lam=st.sampled_from([1.0, 0.95, 0.0]))
def test_gae(batch: Batch, gamma: float, lam: float) -> None:
    paid = batch.ref_logp
    values, tokens = lists(batch.values, batch.mask), lists(paid, batch.mask)
    for row, reward in zip(tokens, batch.reward.tolist(), strict=True):
        if row:
            row[-1] += reward
    expected = [loops.gae_row(r, v, gamma, lam) for r, v in zip(tokens, values, strict=True)]
    part = Gae(gamma=gamma, lam=lam, whiten=False)
    agree(part(view_of(batch, token_reward=paid, values=batch.values)).advantages, batch.mask, expected)


@few
@given(batch=ragged, dual=st.sampled_from([None, 1.5]), arm=st.sampled_from(["dapo", "grpo"]))
def test_token_clip(batch: Batch, dual: float | None, arm: str) -> None:
    algorithm = build_arm(arm) if dual is None else override(build_arm(arm), {"surrogate.dual": dual})
    adv = advantages(algorithm, batch)
    loss, grad, _ = loss_and_gradient(algorithm, batch, adv)
    new, old, a = (lists(x, batch.mask) for x in (batch.logp, batch.old_logp, adv))
    high, mean = (0.28, "token") if arm == "dapo" else (0.27, "sequence")
    want, grads = loops.token_clip_loss(new, old, a, 0.2, high, dual, mean)
    np.testing.assert_allclose(loss.item(), want, rtol=1e-9, atol=1e-12)
    agree(grad, batch.mask, grads)


@few
@given(batch=ragged)
def test_gspo(batch: Batch) -> None:
    adv = advantages(build_arm("gspo"), batch)
    new, old = lists(batch.logp, batch.mask), lists(batch.old_logp, batch.mask)
    rows = [row[0] if row else 0.0 for row in lists(adv, batch.mask)]
    want, grads = loops.gspo_loss(new, old, rows, 3e-4, 4e-4)
    for arm in ("gspo", "gspo_token"):
        loss, grad, _ = loss_and_gradient(build_arm(arm), batch, adv)
        np.testing.assert_allclose(loss.item(), want, rtol=1e-9, atol=1e-12)
        agree(grad, batch.mask, grads)
