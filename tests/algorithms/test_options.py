"""The options beyond the six algorithms: oracles, limits in which they reduce to others, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms import checks
from algorithms.parts.advantages import LeaveOneOut
from algorithms.parts.corrections import Importance
from algorithms.parts.exclusions import Rejected, Truncated
from algorithms.parts.kl import adapted, kl_estimate
from algorithms.parts.multireward import NormalizeThenSum, SumThenNormalize
from algorithms.parts.penalties import Kl
from algorithms.parts.quirks import GaeOpenRlhf
from algorithms.parts.surrogates import Cispo, CispoCapped, Clip, TwoSided
from harness.core.algorithm import Algorithm, override
from harness.core.errors import UsageError
from harness.core.parts import AdvantageInput, ExclusionView
from harness.core.ports import TaskInfo
from harness.core.registry import algorithm
from harness.core.routing import route
from harness.train.objective import batch_totals, loss_mask, policy_loss
from tests.algorithms.batches import Batch, advantages, loss_and_gradient, make_batch, ragged
from tests.algorithms.test_oracles import agree, lists, view_of
from tests.oracles import loops

few = settings(max_examples=25, deadline=None)
TASK = TaskInfo(name="sums", reward_range=(0.0, 1.0), threshold=1.0, graded=True)


@few
@given(batch=ragged)
def test_rloo(batch: Batch) -> None:
    want = loops.leave_one_out(batch.reward.tolist(), batch.group.tolist())
    rows = [[a] * n for a, n in zip(want, batch.mask.sum(1).tolist(), strict=True)]
    agree(LeaveOneOut()(view_of(batch)).advantages, batch.mask, rows)


def components(batch: Batch) -> dict[str, torch.Tensor]:
    second = torch.where(batch.uniform < 0.3, torch.nan, batch.uniform * 5)
    return {"outcome": torch.where(batch.uniform > 0.9, torch.nan, batch.reward), "style": second}


@few
@given(batch=ragged)
def test_gdpo(batch: Batch) -> None:
    parts = components(batch)
    want = loops.normalize_then_sum([x.tolist() for x in parts.values()], [1.0, 0.5], batch.group.tolist(), 1e-4)
    found = NormalizeThenSum(weights={"outcome": 1.0, "style": 0.5}, eps=1e-4)(
        replace(view_of(batch), components=parts)
    )
    agree(found.advantages, batch.mask, [[a] * n for a, n in zip(want, batch.mask.sum(1).tolist(), strict=True)])


def test_one_component_is_the_group_advantage() -> None:
    batch = make_batch(3)
    view = replace(view_of(batch), components={"outcome": batch.reward})
    same = SumThenNormalize()(view).advantages
    torch.testing.assert_close(same, algorithm("grpo").advantage(view).advantages)


def test_rows_where_all_abstain_get_zero_and_do_not_move_the_mean() -> None:
    values = torch.tensor([1.0, 0.0, torch.nan, 0.5], dtype=torch.float64)
    view = AdvantageInput(
        reward=torch.zeros(4, dtype=torch.float64),
        mask=torch.ones(4, 1, dtype=torch.bool),
        group=torch.zeros(4, dtype=torch.int64),
        num_groups=1,
        kept=torch.ones(4, dtype=torch.bool),
        components={"x": values},
    )
    found = SumThenNormalize(std="none")(view).advantages[:, 0]
    assert found.tolist() == [0.5, -0.5, 0.0, 0.0]
    with pytest.raises(UsageError, match="style"):
        SumThenNormalize(weights={"style": 1.0})(view)


@few
@given(
    batch=ragged,
    level=st.sampled_from(["token", "sequence"]),
    mode=st.sampled_from(["truncate", "mask"]),
)
def test_rollout_correction(batch: Batch, level: str, mode: str) -> None:
    part = Importance.model_validate({"level": level, "mode": mode, "cap": 1.5})
    old, behaviour = lists(batch.old_logp, batch.mask), lists(batch.ref_logp, batch.mask)
    want = [loops.rollout_weights(a, b, level, mode, 1.5) for a, b in zip(old, behaviour, strict=True)]
    agree(part(batch.old_logp, batch.ref_logp, batch.mask), batch.mask, want)


def test_weights_scale_the_gradient_and_get_none() -> None:
    batch = make_batch(2)
    record = override(algorithm("grpo"), {"penalties.kl": None})
    weights = torch.full(batch.mask.shape, 0.25, dtype=torch.float64, requires_grad=True)
    adv = advantages(record, batch)
    _, plain, _ = loss_and_gradient(record, batch, adv)
    logp = batch.logp.clone().requires_grad_()
    out = policy_loss(
        record, logp=logp, old_logp=batch.old_logp, ref_logp=None, entropy=None, advantages=adv, mask=batch.mask,
        totals=batch_totals(batch.mask), weights=weights,
    )  # fmt: skip
    (grad, none) = torch.autograd.grad(out.loss, [logp, weights], allow_unused=True)
    torch.testing.assert_close(grad, 0.25 * plain)
    assert none is None


@few
@given(batch=ragged, gamma=st.sampled_from([1.0, 0.9]), lam=st.sampled_from([1.0, 0.5]))
def test_gae_of_openrlhf(batch: Batch, gamma: float, lam: float) -> None:
    view = replace(
        view_of(batch, token_reward=batch.ref_logp, values=batch.values), reward=torch.zeros_like(batch.reward)
    )
    found = GaeOpenRlhf(gamma=gamma, lam=lam, whiten=False)(view).advantages
    for i, mask in enumerate(batch.mask.tolist()):
        row = [batch.ref_logp[i].tolist(), batch.values[i].tolist()]
        want = np.array(loops.gae_with_observations(row[0], row[1], mask, gamma, lam))
        np.testing.assert_allclose(found[i].numpy(), want * np.array(mask), rtol=1e-9, atol=1e-12)


@few
@given(batch=ragged, capped=st.booleans())
def test_cispo(batch: Batch, capped: bool) -> None:
    part = CispoCapped(cap=1.3) if capped else Cispo(low=0.2, high=0.28)
    mask = batch.mask
    logp, old = torch.where(mask, batch.logp, 0.0).requires_grad_(), torch.where(mask, batch.old_logp, 0.0)
    adv = advantages(algorithm("grpo"), batch)
    out = part((logp - old).exp(), adv, logp)
    (grad,) = torch.autograd.grad(out.loss.sum(), logp)
    rows = zip(lists(logp.detach(), mask), lists(old, mask), lists(adv, mask), strict=True)
    want = [loops.cispo_gradient(a, b, c, None if capped else 0.8, 1.3 if capped else 1.28) for a, b, c in rows]
    agree(grad, mask, want)


@few
@given(batch=ragged)
def test_two_sided_is_the_dual_clip_above_the_range(batch: Batch) -> None:
    adv = advantages(algorithm("grpo"), batch)
    base = override(algorithm("grpo"), {"penalties.kl": None})
    pair = [base.model_copy(update={"surrogate": s}) for s in (Clip(dual=1.5), TwoSided(delta=1.5))]
    (a, ga, _), (b, gb, _) = (loss_and_gradient(record, batch, adv) for record in pair)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(ga, gb)


def test_two_sided_below_the_range_bounds_positive_advantages() -> None:
    ratio = torch.tensor([[1.15]], requires_grad=True)
    out = TwoSided(delta=1.1)(ratio, torch.ones(1, 1), torch.zeros(1, 1))
    assert out.loss.item() == pytest.approx(-1.1)
    assert torch.autograd.grad(out.loss.sum(), ratio)[0].item() == 0.0


@pytest.mark.parametrize("score", ["softmax_post", "softmax_pre", "sigmoid"])
def test_router_gates(score: Any) -> None:
    logits = torch.linspace(-2, 2, 12).reshape(3, 4).flip(1).requires_grad_()
    replay = torch.tensor([[3, 0], [1, 2], [2, 3]])
    out = route(logits, 2, score, replay=replay)
    for i, row in enumerate(logits.tolist()):
        np.testing.assert_allclose(out.gates[i].tolist(), loops.gates(row, replay[i].tolist(), score), rtol=1e-5)
    (grad,) = torch.autograd.grad((out.gates * torch.arange(4.0)).sum(), logits)
    assert bool(grad[~out.used].any()) == (score == "softmax_pre")
    natural = route(logits, 2, score)
    same = route(logits, 2, score, replay=natural.experts)
    assert torch.equal(natural.gates, same.gates)  # at the recording policy, replay is the identity


def test_exclusions() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    kept, truncated = torch.tensor([True, False, True, True]), torch.tensor([False, False, True, False])
    record = algorithm("gfpo").model_copy(update={"exclusions": (Rejected(), Truncated())})
    found, counted = loss_mask(record, mask, ExclusionView(kept=kept, truncated=truncated))
    assert found.any(1).tolist() == [True, False, False, True]
    assert counted.tolist() == [True, False, True, True]  # a truncated row still counts in B
    same, all_rows = loss_mask(algorithm("grpo"), mask, ExclusionView(kept=kept, truncated=truncated))
    assert same is mask
    assert bool(all_rows.all())


def test_a_micro_batch_scope_depends_on_the_split() -> None:
    batch = make_batch(4)
    record = override(algorithm("bnpo"), {"surrogate.low": 0.9, "surrogate.high": 9.0})
    assert record.aggregate.per_micro_batch
    adv = advantages(record, batch)
    totals = batch_totals(batch.mask, batch.group)
    halves = []
    for rows in (torch.arange(6), torch.arange(6, 12)):
        out = policy_loss(
            record, logp=batch.logp[rows], old_logp=batch.old_logp[rows], ref_logp=None, entropy=None,
            advantages=adv[rows], mask=batch.mask[rows], totals=replace(totals, micro_batches=2.0),
        )  # fmt: skip
        alone = policy_loss(
            record, logp=batch.logp[rows], old_logp=batch.old_logp[rows], ref_logp=None, entropy=None,
            advantages=adv[rows], mask=batch.mask[rows], totals=batch_totals(batch.mask[rows]),
        )  # fmt: skip
        torch.testing.assert_close(out.loss * 2, alone.loss)
        halves.append(out.loss)
    whole, _, _ = loss_and_gradient(record, batch, adv)
    assert not torch.isclose(whole, torch.stack(halves).sum())


def test_the_kl_controller() -> None:
    assert adapted(0.1, 2.0, 1.0, 100.0, 10) == pytest.approx(0.1 * 1.02)  # limited to a fifth
    assert adapted(0.1, 0.0, 1.0, 100.0, 10) == pytest.approx(0.1 * 0.98)
    part = Kl(coef=0.1, estimator="k1", place="reward", target=1.0, horizon=100.0)
    value = torch.tensor([[1.1, 1.1], [1.1, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert part.next_weight(value, mask) == pytest.approx(0.1 * (1 + 0.1 * 2 / 100), rel=1e-5)
    assert part.with_weight(0.3).weight == 0.3
    assert Kl(coef=0.1).with_weight(0.3).weight == 0.1
    with pytest.raises(UsageError, match="place=reward"):
        Kl(target=1.0, horizon=10.0)
    with pytest.raises(UsageError, match="needs both"):
        Kl(target=1.0, place="reward")


@pytest.mark.parametrize(
    ("base", "changes", "word"),
    [
        ("gdpo", {"rewards.overlong": {}}, "would not be read"),
        ("grpo", {"exclusions.rejected": {}}, "nothing to exclude"),
        ("grpo", {"penalties.kl.place": "reward"}, "one reward per response"),
        ("grpo", {"siblings": 1}, "a group of one"),
        ("gfpo", {"selection.k": 17}, "cannot keep more"),
    ],
)
def test_what_would_not_be_read_is_refused(base: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        override(algorithm(base), changes)


def test_a_layout_that_the_backbone_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="after the last token"):
        checks.refusals_for(algorithm("ppo_trl"), TASK)
    checks.refusals_for(algorithm("ppo_openrlhf"), TASK)


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (override(algorithm("grpo"), {"admission": "mean_between", "admission.high": 0.5}), "admission.high=1"),
        (override(algorithm("gfpo"), {"selection.k": 1}), "every advantage is 0"),
    ],
)
def test_traps_are_told(record: Algorithm, word: str) -> None:
    (told,) = checks.warnings_for(record, TASK)
    assert word in told


def test_an_implausible_sequence_range_is_told() -> None:
    gspo = algorithm("gspo")
    assert checks.range_warning(gspo, 4e-4) is None
    assert "almost every response" in (checks.range_warning(gspo, 0.03) or "")
    assert "nothing is ever clipped" in (checks.range_warning(gspo, 1e-6) or "")
    assert checks.range_warning(algorithm("grpo"), 0.03) is None
    assert checks.range_warning(gspo, 0.0) is None


def test_the_trl_variant_of_gfpo_has_the_larger_gradient() -> None:
    batch = make_batch(8, groups=2, siblings=4, width=5)
    paper = override(algorithm("gfpo"), {"selection.k": 2, "penalties": [], "surrogate.dual": None})
    adv = advantages(paper, batch)
    kept = torch.zeros(8, dtype=torch.bool)
    kept[adv.any(1)] = True
    mask, _ = loss_mask(
        paper.model_copy(update={"exclusions": (Rejected(),)}), batch.mask,
        ExclusionView(kept=kept, truncated=~kept),
    )  # fmt: skip
    _, all_rows, _ = loss_and_gradient(paper, batch, adv)
    _, retained, _ = loss_and_gradient(paper, replace(batch, mask=mask), adv)
    torch.testing.assert_close(retained, all_rows * (batch.mask.sum() / mask.sum()))


@pytest.mark.parametrize("estimator", ["k2", "k3", "k1+", "k3+"])
def test_whose_divergence_a_kl_in_the_loss_descends(estimator: Any) -> None:
    """On-policy, in expectation over the vocabulary: k2 that of KL(pi || ref), k3 that of KL(ref || pi)."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ref = torch.tensor([0.5, 0.2, -0.4, 0.0], dtype=torch.float64).log_softmax(0)
    value = kl_estimate(estimator, logp[None], ref[None], logp[None].detach())[0]
    (found,) = torch.autograd.grad((logp.detach().exp() * value).sum(), logits, retain_graph=True)
    reverse = (logp.exp() * (logp - ref)).sum()
    forward = (ref.exp() * (ref - logp)).sum()
    (want,) = torch.autograd.grad(forward if estimator == "k3" else reverse, logits)
    torch.testing.assert_close(found, want)
