"""Admission, refill, selection, reward shaping and the critic's loss, by hand-computed examples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.arms import build_arm
from algorithms.checks import refusals_for
from algorithms.parts.admission import All, Mixed
from algorithms.parts.aggregates import TokenMean
from algorithms.parts.rewards import Overlong, Random
from algorithms.parts.selection import Adaptive, ByAttribute, Shortest, TokenEfficiency
from algorithms.parts.selection import Random as RandomRows
from harness.core.algorithm import override
from harness.core.errors import UsageError
from harness.core.parts import GroupView, RowView, Selection
from harness.core.ports import TaskInfo
from harness.rollout.refill import Refill, RefillExhausted, refill
from harness.train.objective import batch_totals, log_sequence_ratio_sd, token_rewards, value_loss
from tests.algorithms.batches import Batch, make_batch, ragged, row_view


def rows(length: list[int], reward: list[float], group: list[int] | None = None, limit: int = 100) -> RowView:
    index = torch.tensor(group or [0] * len(length))
    r = torch.tensor(reward, dtype=torch.float64)
    return RowView(
        reward=r,
        correct=r > 0.5,
        length=torch.tensor(length),
        group=index,
        num_groups=int(index.max()) + 1,
        limit=limit,
        reward_range=(0.0, 1.0),
        uniform=torch.linspace(0, 0.99, len(length), dtype=torch.float64),
    )


def kept(part: Selection, view: RowView) -> list[int]:
    return part(view, ()).kept.nonzero()[:, 0].tolist()


def test_shortest_breaks_ties_by_row() -> None:
    assert kept(Shortest(k=2), rows([5, 3, 3, 3], [0, 0, 0, 0])) == [1, 2]


def test_token_efficiency_breaks_ties_by_length_then_row() -> None:
    assert kept(TokenEfficiency(k=2), rows([9, 4, 3, 3], [1, 0, 0, 0])) == [0, 2]
    assert kept(TokenEfficiency(k=1), rows([0, 5], [0.5, 1])) == [0]  # an empty response counts as one token


def test_selection_by_any_attribute_or_component() -> None:
    view = rows([5, 3, 9, 4], [0.2, 0.9, 0.5, 0.5])
    parts = {"format": torch.tensor([0.1, 0.0, 0.7, float("nan")]), "brevity": torch.tensor([4.0, 2.0, 3.0, 1.0])}
    view = replace(view, components=parts)
    assert kept(ByAttribute(k=2, by="reward"), view) == [1, 3], "ties: shorter first"
    assert kept(ByAttribute(k=1, by="reward", prefer="low"), view) == [0]
    assert kept(ByAttribute(k=2, by="length"), view) == [0, 2]
    assert kept(ByAttribute(k=2, by="length", prefer="low"), view) == kept(Shortest(k=2), view) == [1, 3]
    assert kept(ByAttribute(k=2, by="correct"), view) == [1, 3], "wrong ones by length"
    assert kept(ByAttribute(k=2, by="format"), view) == [0, 2]
    assert kept(ByAttribute(k=3, by="format", prefer="low"), view) == [0, 1, 2], "one without a value comes last"
    assert kept(ByAttribute(k=1, by="brevity"), view) == [0]


def test_a_component_that_the_task_lacks_is_refused_before_the_run() -> None:
    record = override(build_arm("gfpo"), {"selection": {"kind": "attribute", "k": 4, "by": "format"}})
    info = TaskInfo(name="t", reward_range=(0.0, 1.0), threshold=1.0, components=("brevity", "form"))
    with pytest.raises(UsageError, match="form"):
        refusals_for(record, info)
    refusals_for(record, replace(info, components=("format",)))
    refusals_for(override(build_arm("gfpo"), {"selection": {"kind": "attribute", "by": "length"}}), info)


def test_selection_works_per_group_in_any_order() -> None:
    assert kept(Shortest(k=1), rows([5, 2, 4, 9], [0] * 4, [1, 0, 1, 0])) == [1, 2]
    assert kept(Shortest(k=9), rows([5, 2], [0, 0])) == [0, 1]


def test_the_placebo_ignores_length_and_reward() -> None:
    assert kept(RandomRows(k=2), rows([1, 2, 3, 4], [1, 1, 0, 0])) == [2, 3]


def test_adaptive_counts_the_batch_itself_group_by_group() -> None:
    part = Adaptive(k_very_hard=4, k_hard=3, k_medium=2, k_easy=1, warmup_prompts=1)
    view = rows([1, 2, 3, 4] * 2, [0.0] * 4 + [1.0] * 4, [0] * 4 + [1] * 4)
    first = part(view, ())  # group 0 falls into the warm-up, group 1 sees {0, 1} and is easy
    assert first.history == (0.0, 1.0)
    assert first.kept.tolist() == [True] * 4 + [True, False, False, False]
    second = part(view, first.history)
    assert len(second.history) == 4
    assert part.k == 4


def test_mixed_admits_groups_with_both_outcomes() -> None:
    reward = torch.tensor([1.0, 0.0, 1.0, 0.9, 0.0, 0.0, 0.3])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    view = GroupView(reward=reward, correct=reward > 0.5, group=group, num_groups=4)
    assert Mixed()(view).tolist() == [True, False, False, True]
    assert Mixed(metric="reward")(view).tolist() == [True, True, False, True]
    assert Mixed(keep_singletons=False)(view).tolist() == [True, False, False, False]
    assert All()(view).all()


def test_refill_decisions() -> None:
    plan = Refill.of(Mixed(max_rounds=2), 4)
    assert [plan.decide(4, 1), plan.decide(3, 1), plan.decide(3, 2)] == ["enough", "more", "exhausted"]
    assert Refill.of(Mixed(max_rounds=0), 4).decide(0, 99) == "more"
    assert Refill.of(All(), 4).decide(4, 1) == "enough"
    with pytest.raises(RefillExhausted):
        Refill.of(Mixed(max_rounds=2, on_exhausted="raise"), 4).decide(3, 2)


def test_refill_throws_the_surplus_away_and_trains_on_what_there_is() -> None:
    plan = Refill.of(Mixed(max_rounds=2), 3)
    full = refill([[1, 2], [3, 4], [5]], plan)
    assert (full.kept, full.rounds, full.exhausted) == ((1, 2, 3), 2, False)
    short = refill([[1], []], plan)
    assert (short.kept, short.rounds, short.exhausted) == ((1,), 2, True)


def test_overlong_takes_half_of_the_range() -> None:
    view = rows([16384, 18432, 20480], [1.0, 1.0, 1.0], limit=20480)
    assert Overlong()(view).tolist() == [1.0, 0.75, 0.5]
    assert Overlong(fraction=1.0, cache=4096)(view).tolist() == [1.0, 0.5, 0.0]


def test_overlong_cache_must_fit() -> None:
    with pytest.raises(UsageError, match="cache=4096"):
        Overlong(cache=4096)(rows([1], [0.0], limit=24))
    with pytest.raises(UsageError, match="cache=9"):
        Overlong(cache=9, limit=8)


def test_random_reward_is_a_coin_in_the_range() -> None:
    assert Random()(rows([1] * 4, [0.3] * 4)).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_kl_in_reward_is_signed_and_weighted() -> None:
    batch = make_batch(1)
    paid = token_rewards(build_arm("ppo", "published"), batch.old_logp, batch.ref_logp, batch.mask)
    assert paid is not None
    expected = torch.where(batch.mask, -0.001 * (batch.old_logp - batch.ref_logp), 0.0)
    torch.testing.assert_close(paid, expected)
    assert token_rewards(build_arm("grpo", "published"), batch.old_logp, batch.ref_logp, batch.mask) is None


def test_critic_loss_by_hand() -> None:
    mask = torch.tensor([[True, True, False]])
    vpred = torch.tensor([[2.0, 0.1, 7.0]], requires_grad=True)
    given_values = {"values": torch.zeros(1, 3), "returns": torch.tensor([[0.0, 1.0, 3.0]]), "mask": mask}
    totals = batch_totals(mask)
    boxed = value_loss(vpred=vpred, **given_values, totals=totals, clip=0.5, aggregate=TokenMean())
    assert boxed.loss.item() == pytest.approx(0.5 * (4.0 + 0.81) / 2)
    assert not boxed.clipped.any()  # the first token leaves the box, but its unclipped error is the larger one
    toward = value_loss(
        vpred=vpred,
        **{**given_values, "returns": torch.tensor([[9.0, 1.0, 3.0]])},
        totals=totals,
        clip=0.5,
        aggregate=TokenMean(),
    )
    assert toward.clipped.tolist() == [[True, False, False]]
    (grad,) = torch.autograd.grad(toward.loss, vpred)
    assert grad.tolist() == [pytest.approx([0.0, -0.45, 0.0])]


@settings(max_examples=20, deadline=None)
@given(batch=ragged, scale=st.sampled_from([1e-3, 1.0]))
def test_drift_unit(batch: Batch, scale: float) -> None:
    sd = log_sequence_ratio_sd(batch.old_logp + scale, batch.old_logp, batch.mask)
    assert sd == pytest.approx(0.0, abs=1e-12)  # a constant shift has no spread
    assert row_view(batch).num_groups == batch.num_groups


def test_totals_of_a_mini_batch() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    totals = batch_totals(mask, torch.tensor([1, 0, 1]))
    assert (totals.tokens, totals.rows, totals.rows_nonempty, totals.width, totals.groups) == (3, 3, 2, 3, 1)
    assert totals.group_tokens is not None
    assert totals.group_tokens.tolist() == [3, 0, 3]
