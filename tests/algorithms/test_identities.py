"""Where one algorithm is another, and what happens at the edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.arms import ARMS, build_arm, equivalent_to
from algorithms.parts.advantages import Gae, Group
from algorithms.parts.ratios import Sequence, SequenceProduct, Token
from algorithms.parts.selection import Random, Shortest, TokenEfficiency
from harness.core.algorithm import Algorithm, override
from harness.core.masked import row_mean
from harness.core.parts import AdvantageInput
from harness.core.types import StepCredit
from harness.train.objective import batch_totals
from tests.algorithms.batches import Batch, advantages, loss_and_gradient, make_batch, ragged, row_view

few = settings(max_examples=20, deadline=None)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def assert_equal_updates(a: Algorithm, b: Algorithm, batch: Batch) -> None:
    adv_a, adv_b = advantages(a, batch), advantages(b, batch)
    same(adv_a, adv_b)
    for x, y in zip(loss_and_gradient(a, batch, adv_a)[:2], loss_and_gradient(b, batch, adv_b)[:2], strict=True):
        same(x, y)


@few
@given(batch=ragged)
def test_gspo_token_with_row_constant_advantages_is_gspo(batch: Batch) -> None:
    assert_equal_updates(build_arm("gspo_token"), build_arm("gspo"), batch)
    token, pure = build_arm("gspo_token"), build_arm("gspo")
    flags = [loss_and_gradient(a, batch, advantages(a, batch))[2][0] for a in (token, pure)]
    assert torch.equal(flags[0].clipped_low, flags[1].clipped_low)
    assert torch.equal(flags[0].clipped_high, flags[1].clipped_high)


def test_gspo_token_differs_from_gspo_within_a_row() -> None:
    batch = make_batch(1, spread=1e-4)
    adv = advantages(build_arm("gspo_token_process"), batch)
    token = loss_and_gradient(build_arm("gspo_token"), batch, adv)[1]
    pure = loss_and_gradient(build_arm("gspo"), batch, adv)[1]
    assert not torch.allclose(token, pure)
    same(row_mean(token, batch.mask), row_mean(pure, batch.mask))  # unclipped: the row average of the same signal


@few
@given(batch=ragged)
def test_the_product_is_gspos_ratio_to_the_power_of_the_length(batch: Batch) -> None:
    logp, old = batch.logp.clone().requires_grad_(), batch.old_logp
    product, mean = (part(guard=None)(logp, old, batch.mask) for part in (SequenceProduct, Sequence))
    same(product, mean ** batch.mask.sum(-1, keepdim=True))
    one = batch.mask & (batch.mask.cumsum(1) == 1)
    same(SequenceProduct()(logp, old, one)[one], Token()(logp, old, one)[one])


@few
@given(batch=ragged)
def test_grpo_on_one_token_responses_is_gspo(batch: Batch) -> None:
    first = batch.mask.cumsum(1) == 1
    short = replace(batch, mask=batch.mask & first)
    equal_clip = {"surrogate.low": 0.1, "surrogate.high": 0.3}
    assert_equal_updates(override(build_arm("gspo"), equal_clip), override(build_arm("grpo"), equal_clip), short)


@few
@given(batch=ragged)
def test_dapo_without_its_four_parts_is_grpo_without_kl(batch: Batch) -> None:
    off = {"surrogate.high": 0.2, "admission": "all", "aggregate": "seq-mean-token-mean", "rewards.overlong": None}
    dapo = override(build_arm("dapo", "published"), off)
    grpo = override(build_arm("grpo", "published"), {"penalties.kl": None})
    assert dapo.model_copy(update={"name": "grpo"}) == grpo
    assert_equal_updates(dapo, grpo, batch)


@few
@given(batch=ragged, metric=st.sampled_from(["shortest", "token_efficiency", "random"]))
def test_gfpo_keeping_all_is_its_base(batch: Batch, metric: str) -> None:
    siblings = int(torch.bincount(batch.group).max())
    kinds = {"shortest": Shortest(k=siblings), "token_efficiency": TokenEfficiency(k=siblings)}
    part = kinds.get(metric, Random(k=siblings))
    gfpo = build_arm("gfpo_shortest").model_copy(update={"selection": part})
    assert_equal_updates(gfpo, build_arm("grpo"), batch)


def test_keeping_all_is_told() -> None:
    with pytest.warns(UserWarning, match="equals its base"):
        override(build_arm("gfpo"), {"siblings": 8})


def test_published_presets_differ_from_grpo_in_what_their_papers_say() -> None:
    batch = replace(make_batch(3), ref_logp=make_batch(3).old_logp)
    dual = override(build_arm("ppo"), {"surrogate.dual": 3.0})
    adv = torch.full(batch.mask.shape, -1.0, dtype=torch.float64)
    far = replace(batch, logp=batch.old_logp + math.log(5.0))
    loss, grad, (out,) = loss_and_gradient(dual, far, adv)
    same(loss, torch.tensor(3.0, dtype=torch.float64))
    assert not grad.any()
    assert torch.equal(out.clipped_dual, batch.mask)


CLIPPING = [name for name in ARMS if build_arm(name).surrogate.clips and build_arm(name).aggregate.kind]


@pytest.mark.parametrize("name", CLIPPING)
def test_ratio_one(name: str) -> None:
    """Every ratio is 1, nothing clips, and the gradient is -A times the aggregation's weights."""
    algorithm = build_arm(name)
    batch = make_batch(5)
    batch = replace(batch, logp=batch.old_logp.clone())
    adv = advantages(algorithm, batch)
    loss, grad, (out,) = loss_and_gradient(algorithm, batch, adv)
    assert bool((out.ratio == 1).all())
    assert not (out.clipped_low | out.clipped_high | out.clipped_dual | out.outside).any()
    weights = torch.ones_like(adv).requires_grad_()
    mean = algorithm.aggregate(weights, batch.mask, batch_totals(batch.mask, batch.group))
    (weights_grad,) = torch.autograd.grad(mean, weights)
    same(loss, -(weights_grad * adv).sum())
    if algorithm.ratio.kind == "sequence":
        adv = row_mean(adv, batch.mask)[:, None].expand(adv.shape)
    same(grad, -weights_grad * adv)


@pytest.mark.parametrize("name", ["grpo", "gspo", "gfpo_shortest", "dapo", "gspo_token_process"])
def test_all_equal_groups_give_exactly_zero(name: str) -> None:
    batch = make_batch(7)
    none = replace(batch.credit, reward=torch.full_like(batch.credit.reward, 0.1))
    batch = replace(batch, reward=torch.full_like(batch.reward, 0.1), credit=none)
    algorithm = override(build_arm(name), {"rewards.overlong": None}) if name == "dapo" else build_arm(name)
    adv = advantages(algorithm, batch)
    assert not adv.any()
    assert not loss_and_gradient(algorithm, batch, adv)[1].any()


def test_a_dead_group_still_counts_in_the_denominator_and_receives_kl() -> None:
    batch = make_batch(7)
    batch = replace(batch, reward=torch.where(batch.group == 0, 1.0, batch.reward))
    adv = advantages(build_arm("grpo"), batch)
    dead = batch.group == 0
    assert not loss_and_gradient(build_arm("grpo"), batch, adv)[1][dead].any()
    assert loss_and_gradient(build_arm("grpo", "published"), batch, adv)[1][dead & batch.mask.any(1)].any()


def test_an_empty_response_has_no_gradient_but_counts_in_the_statistics() -> None:
    batch = make_batch(2)
    lone = replace(batch, mask=batch.mask & (torch.arange(len(batch.mask)) != 0)[:, None])
    other = replace(lone, reward=lone.reward + torch.eye(len(lone.reward), dtype=torch.float64)[0])
    grpo = build_arm("grpo")
    adv, moved = advantages(grpo, lone), advantages(grpo, other)
    assert not torch.equal(adv, moved)
    loss, grad, _ = loss_and_gradient(grpo, lone, adv)
    assert not grad[0].any()
    rest = torch.arange(1, len(adv))
    same(loss_and_gradient(grpo, lone.rows(rest), adv[rest])[0], loss)  # B+ excludes it


@pytest.mark.parametrize("name", sorted(ARMS))
def test_an_all_masked_mini_batch_has_loss_zero(name: str) -> None:
    batch = make_batch(4).with_garbage(math.nan)
    c = batch.credit
    none = StepCredit(row=c.row[:0], end=c.end[:0], reward=c.reward[:0])
    batch = replace(batch, mask=torch.zeros_like(batch.mask), credit=none).with_garbage(math.nan)
    for roster in ("published", "matched"):
        algorithm = build_arm(name, roster)
        adv = advantages(algorithm, batch)
        loss, grad, _ = loss_and_gradient(algorithm, batch, adv)
        assert loss == 0
        assert not grad.any()


def test_extreme_ratios_stay_finite_and_have_no_gradient_outside_the_guard() -> None:
    batch = make_batch(6)
    far = replace(batch, logp=batch.old_logp + 50.0).with_garbage(0.0)
    adv = torch.full(batch.mask.shape, -1.0, dtype=torch.float64)
    for name in ("grpo", "gspo", "gspo_token"):
        loss, grad, _ = loss_and_gradient(build_arm(name), far, adv)
        assert loss.isfinite()
        assert not grad.any()


def group_view(reward: list[float], kept: list[bool] | None = None) -> AdvantageInput:
    rows = len(reward)
    return AdvantageInput(
        reward=torch.tensor(reward, dtype=torch.float64),
        mask=torch.ones(rows, 1, dtype=torch.bool),
        group=torch.zeros(rows, dtype=torch.int64),
        num_groups=1,
        kept=torch.tensor(kept or [True] * rows),
    )


SANITY = {1: (2.475, -0.354), 2: (1.620, -0.540), 4: (0.935, -0.935), 6: (0.540, -1.620), 7: (0.354, -2.475)}


@pytest.mark.parametrize("correct", SANITY)
def test_binary_rewards_in_a_group_of_eight(correct: int) -> None:
    row = Group(eps=0.0)(group_view([1.0] * correct + [0.0] * (8 - correct))).advantages[:, 0]
    assert row[0].item() == pytest.approx(SANITY[correct][0], abs=5e-4)
    assert row[-1].item() == pytest.approx(SANITY[correct][1], abs=5e-4)


@few
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_bound_of_the_group_advantage(reward: list[float]) -> None:
    assert Group()(group_view(reward)).advantages.abs().max() <= 7 / math.sqrt(8) + 1e-9
    assert Group(std="biased")(group_view(reward)).advantages.abs().max() <= math.sqrt(7) + 1e-9


def test_groups_of_one() -> None:
    view = group_view([0.7])
    assert Group()(view).advantages.item() == 0
    assert Group(singleton="raw")(view).advantages.item() == pytest.approx(0.7, rel=1e-5)
    kept = group_view([0.7, 0.2], [True, False])  # one survivor of a selection
    assert Group()(kept).advantages.tolist() == [[0.0], [0.0]]


def test_gspo_worked_example() -> None:
    """Token ratios 1.10, .95, 1.30, .90: the token clip of .2 clips one token, GSPO's 3e-4 clips the row."""
    ratio = torch.tensor([[1.10, 0.95, 1.30, 0.90]], dtype=torch.float64)
    old, mask = torch.full_like(ratio, -1.0), torch.ones_like(ratio, dtype=torch.bool)
    gspo, grpo = build_arm("gspo"), build_arm("grpo", "published")
    s = gspo.ratio(old + ratio.log(), old, mask)
    assert s[0, 0].item() == pytest.approx(1.0515, abs=5e-5)
    same(Token()(old + ratio.log(), old, mask), ratio)
    adv = torch.ones_like(ratio)
    assert grpo.surrogate(ratio, adv, old).high.tolist() == [[False, False, True, False]]
    assert gspo.surrogate(s, adv, old).high.all()


def test_gae_lambda_one_is_return_minus_value() -> None:
    batch = make_batch(8).with_garbage(math.nan)
    view = row_view(batch)
    out = Gae(whiten=False)(
        AdvantageInput(
            reward=view.reward,
            mask=batch.mask,
            group=view.group,
            num_groups=view.num_groups,
            kept=torch.ones_like(view.correct),
            values=batch.values,
        )
    )
    assert out.returns is not None
    expected = torch.where(batch.mask, view.reward[:, None], 0.0)
    same(out.returns, expected)
    same(out.advantages, torch.where(batch.mask, expected - batch.values, 0.0))


def test_equivalence_is_recognised() -> None:
    assert equivalent_to(build_arm("gspo_token")) == "gspo"
    for name in ("gspo", "grpo", "gspo_token_process", "rft"):
        assert equivalent_to(build_arm(name)) is None
    with_critic = override(build_arm("gspo_token"), {"advantage": "gae"})
    assert equivalent_to(with_critic) is None
    assert "critic" in with_critic.needs
