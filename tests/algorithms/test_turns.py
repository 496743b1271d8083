"""Credit per turn: hand-computed advantages, what they reduce to, and no gradient at the environment's tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.arms import ARMS, build_arm
from algorithms.checks import refusals_for
from algorithms.parts.advantages import Gae, Group, Turns
from harness.core.errors import UsageError
from harness.core.parts import AdvantageInput
from harness.core.ports import TaskInfo
from harness.core.registry import algorithm, algorithm_names
from harness.core.types import StepCredit
from harness.train.objective import batch_totals, policy_loss
from tests.algorithms.batches import Batch, ragged, turns_of

# Three siblings: two turns, two turns, one turn. o = a token of the environment's reply.
#          t t o t t     t o t - -     t t - - -
MASK = [[1, 1, 0, 1, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
TURNS = ((0, 1, 0.25), (0, 4, 0.75), (1, 0, 0.25), (1, 2, 0.0), (2, 1, 1.0))
REWARD = [1.0, 0.25, 1.0]


def steps(entries: tuple[tuple[int, int, float], ...]) -> StepCredit:
    row, end, reward = zip(*entries, strict=True)
    return StepCredit(row=torch.tensor(row), end=torch.tensor(end), reward=torch.tensor(reward, dtype=torch.float64))


def example(**changes: object) -> AdvantageInput:
    view = AdvantageInput(
        reward=torch.tensor(REWARD, dtype=torch.float64),
        mask=torch.tensor(MASK, dtype=torch.bool),
        group=torch.zeros(3, dtype=torch.long),
        num_groups=1,
        kept=torch.ones(3, dtype=torch.bool),
        turns=steps(TURNS),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def test_a_turn_is_compared_with_the_same_turn_of_its_siblings() -> None:
    """First turns: to come 1, .25, 1, mean .75. Second turns: .75 and 0, mean .375; the third row has none."""
    found = Turns(std="none")(example()).advantages
    assert found.tolist() == [[0.25, 0.25, 0, 0.375, 0.375], [-0.5, 0, -0.375, 0, 0], [0.25, 0.25, 0, 0, 0]]


def test_the_discount_is_per_turn() -> None:
    """gamma .5: first turns have .25 + .375, .25 + 0 and 1 to come, mean .625."""
    found = Turns(std="none", gamma=0.5)(example()).advantages
    assert found[:, 0].tolist() == [0.0, -0.375, 0.375]
    assert found[0, 4].item() == 0.375, "the last turn has no later one"


def test_scaling_and_a_lone_turn() -> None:
    """Unbiased deviation of (1, .25, 1) is sqrt(.1875); a turn that no sibling has is compared with nothing."""
    found = Turns(eps=0.0)(example()).advantages
    assert found[:, 0].tolist() == pytest.approx([0.25 / 0.1875**0.5, -0.5 / 0.1875**0.5, 0.25 / 0.1875**0.5])
    alone = Turns()(example(turns=steps((*TURNS[:2], (1, 2, 0.25), TURNS[4])))).advantages
    assert alone[0, 3:].tolist() == [0.0, 0.0]


def test_shaping_counts_for_the_last_turn() -> None:
    """Half a point taken from the first row: its second turn has .25, both its turns .5 to come."""
    found = Turns(std="none")(example(reward=torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64))).advantages
    assert found[0].tolist() == pytest.approx([0.5 - 1.75 / 3] * 2 + [0, 0.125, 0.125])


def test_a_row_that_is_not_kept_and_one_without_a_reward_take_no_part() -> None:
    kept = torch.tensor([True, True, False])
    found = Turns(std="none")(example(kept=kept)).advantages
    assert found[:, 0].tolist() == [0.375, -0.375, 0.0]
    nan = torch.tensor([1.0, 0.25, float("nan")], dtype=torch.float64)
    assert Turns(std="none")(example(reward=nan)).advantages[:, 0].tolist() == [0.375, -0.375, 0.0]


@given(ragged)
def test_with_one_turn_per_response_it_is_the_group_advantage(batch: Batch) -> None:
    at = [int(m.nonzero()[-1]) if m.any() else 0 for m in batch.mask]
    turns = StepCredit(row=torch.arange(len(at)), end=torch.tensor(at), reward=batch.reward)
    view = AdvantageInput(
        reward=batch.reward, mask=batch.mask, group=batch.group, num_groups=batch.num_groups,
        kept=torch.ones_like(batch.correct), turns=turns,
    )  # fmt: skip
    assert torch.equal(Turns()(view).advantages, Group()(view).advantages)
    assert torch.equal(Turns()(replace(view, turns=None)).advantages, Group()(view).advantages)


def test_gae_pays_each_turn_at_its_end() -> None:
    """Undiscounted and with values of 0 the advantage is what is still to come; replies are stepped over."""
    part = Gae(whiten=False, rewards="turns")
    zero = torch.zeros(3, 5, dtype=torch.float64)
    found = part(example(values=zero)).advantages
    assert found.tolist() == [[1, 1, 0, 0.75, 0.75], [0.25, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    outcome = Gae(whiten=False)(example(values=zero)).advantages
    assert outcome.tolist() == [[1, 1, 0, 1, 1], [0.25, 0, 0.25, 0, 0], [1, 1, 0, 0, 0]]


def test_gae_by_hand_across_a_reply() -> None:
    """gamma .5, lambda 1, V = .5: row 1 has deltas .25 + .25 - .5 = 0 and 0 - .5, so A = 0 + .5 (-.5), then -.5."""
    values = torch.full((3, 5), 0.5, dtype=torch.float64)
    found = Gae(whiten=False, rewards="turns", gamma=0.5)(example(values=values)).advantages
    assert found[1].tolist() == [-0.25, 0.0, -0.5, 0.0, 0.0]


@given(ragged)
def test_what_turns_earn_adds_up_to_the_reward(batch: Batch) -> None:
    """Without a baseline the first token's return is the row's reward, however it is split over turns."""
    turns = turns_of(batch)
    view = AdvantageInput(
        reward=batch.reward, mask=batch.mask, group=batch.group, num_groups=batch.num_groups,
        kept=torch.ones_like(batch.correct), values=torch.zeros_like(batch.values), turns=turns,
    )  # fmt: skip
    returns = Gae(whiten=False, rewards="turns")(view).returns
    assert returns is not None
    for row, mask in enumerate(batch.mask):
        if mask.any():
            assert returns[row, mask.nonzero()[0, 0]].item() == pytest.approx(batch.reward[row].item())


def gradient(name: str, batch: Batch, garbage: float) -> Tensor:
    record = algorithm(name)
    if record.surrogate.needs_calibration:
        record = record.model_copy(update={"surrogate": record.surrogate.calibrated(0.05)})
    dirty = batch.with_garbage(garbage)
    logp = dirty.logp.clone().requires_grad_()
    loss = policy_loss(
        record, logp=logp, old_logp=dirty.old_logp, ref_logp=dirty.ref_logp, entropy=dirty.entropy,
        advantages=torch.where(batch.mask, batch.reward[:, None] - 0.4, garbage), mask=batch.mask,
        totals=batch_totals(batch.mask, batch.group),
    ).loss  # fmt: skip
    return torch.autograd.grad(loss, logp)[0]


@pytest.mark.parametrize("name", [n for n in algorithm_names() if not n.startswith("fault")])
@settings(max_examples=12)
@given(batch=ragged, garbage=st.sampled_from([0.0, 1e3, -50.0, float("inf"), float("nan")]))
def test_tokens_of_the_environment_get_exactly_no_gradient(name: str, batch: Batch, garbage: float) -> None:
    """Rows with holes, as replies leave them: exactly 0 there, whatever stands there, and the rest does not notice."""
    found = gradient(name, batch, garbage)
    assert not found[~batch.mask].any()
    assert torch.equal(found, gradient(name, batch, 0.0))


def test_arms_of_turns_need_turns_and_are_dense() -> None:
    single = TaskInfo(name="one", reward_range=(0.0, 1.0), threshold=1.0, credit=True)
    for name in ("gspo_token_turns", "gspo_token_turns_calibrated", "grpo_turns", "ppo_turns"):
        record = build_arm(name)
        assert record.dense
        assert ARMS[name].bracket == "dense"
        with pytest.raises(UsageError, match="a response is one turn there"):
            refusals_for(record, single)
        refusals_for(record, replace(single, max_turns=3))
    assert not build_arm("ppo").dense
