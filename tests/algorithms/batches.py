"""Ragged batches drawn by hypothesis, and what an algorithm makes of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from harness.core.algorithm import Algorithm
from harness.core.parts import AdvantageInput, RowView
from harness.core.types import LossOutput, StepCredit
from harness.train.objective import batch_totals, micro_totals, policy_loss, token_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything a loss may look at; float64."""

    logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    entropy: Tensor
    values: Tensor
    mask: Tensor
    group: Tensor
    reward: Tensor
    correct: Tensor
    uniform: Tensor
    credit: StepCredit

    @property
    def num_groups(self) -> int:
        return int(self.group.max()) + 1

    def rows(self, index: Tensor) -> Batch:
        """The rows of `index`, in its order."""
        place = torch.full((len(self.mask),), -1)
        place[index] = torch.arange(len(index))
        keep = place[self.credit.row] >= 0
        moved = StepCredit(row=place[self.credit.row][keep], end=self.credit.end[keep], reward=self.credit.reward[keep])
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "credit"}
        return Batch(**picked, credit=moved)

    def widened(self, extra: int, garbage: float) -> Batch:
        """The same rows, padded by `extra` more masked columns."""
        pad = torch.full((len(self.mask), extra), garbage, dtype=torch.float64)
        wide: dict[str, Any] = {n: torch.cat([getattr(self, n), pad], 1) for n in TOKENS}
        return replace(self, mask=torch.cat([self.mask, pad.isinf()], 1), **wide)

    def with_garbage(self, garbage: float) -> Batch:
        """The same batch with other values at masked positions."""
        return replace(self, **{n: getattr(self, n).masked_fill(~self.mask, garbage) for n in TOKENS})


TOKENS = ("logp", "old_logp", "ref_logp", "entropy", "values")


def make_batch(seed: int, groups: int = 3, siblings: int = 4, width: int = 6, spread: float = 0.3) -> Batch:
    """Ragged rows in shuffled order, with empty rows and holes; garbage at masked positions."""
    g = torch.Generator().manual_seed(seed)
    rows = groups * siblings

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(rows, width, generator=g, dtype=torch.float64)

    length = torch.randint(0, width + 1, (rows,), generator=g)
    length[0] = max(int(length[0]), 1)
    holes = torch.rand(rows, width, generator=g) < 0.15
    mask = (torch.arange(width) < length[:, None]) & ~holes
    old = -normal(1.0).abs() - 0.1
    reward = torch.randint(0, 4, (rows,), generator=g).double() / 3
    steps = mask.nonzero()[torch.rand(int(mask.sum()), generator=g) < 0.4]
    return Batch(
        logp=old + normal(spread),
        old_logp=old,
        ref_logp=old + normal(spread),
        entropy=normal(1.0).abs(),
        values=normal(1.0),
        mask=mask,
        group=torch.arange(groups).repeat(siblings)[torch.randperm(rows, generator=g)],
        reward=reward,
        correct=reward > 0.5,
        uniform=torch.rand(rows, generator=g, dtype=torch.float64),
        credit=StepCredit(
            row=steps[:, 0], end=steps[:, 1], reward=torch.rand(len(steps), generator=g, dtype=torch.float64)
        ),
    ).with_garbage(1e3)


def turns_of(batch: Batch) -> StepCredit:
    """Rows of two turns (of one, where they have one token): what the first earns is drawn, the last has the rest."""
    found: list[tuple[int, int, float]] = []
    for row, mask in enumerate(batch.mask):
        at = mask.nonzero()[:, 0].tolist()
        first = float(batch.uniform[row]) / 2 if len(at) > 1 else 0.0
        found += [(row, at[(len(at) - 1) // 2], first)] if len(at) > 1 else []
        found += [(row, at[-1], float(batch.reward[row]) - first)] if at else []
    rows, ends, rewards = [x[0] for x in found], [x[1] for x in found], [x[2] for x in found]
    return StepCredit(
        row=torch.tensor(rows, dtype=torch.long),
        end=torch.tensor(ends, dtype=torch.long),
        reward=torch.tensor(rewards, dtype=torch.float64),
    )


ragged = st.builds(
    make_batch,
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 4),
    siblings=st.integers(2, 6),
    width=st.integers(1, 8),
    spread=st.sampled_from([0.003, 0.3, 3.0]),
)


def row_view(batch: Batch) -> RowView:
    return RowView(
        reward=batch.reward,
        correct=batch.correct,
        length=batch.mask.sum(1),
        group=batch.group,
        num_groups=batch.num_groups,
        limit=batch.mask.shape[1],
        reward_range=(0.0, 1.0),
        uniform=batch.uniform,
    )


def advantages(algorithm: Algorithm, batch: Batch, **changes: Any) -> Tensor:
    """Shaping, selection and advantage slots, as the backbone chains them."""
    view = row_view(batch)
    for part in algorithm.rewards:
        view = replace(view, reward=part(view))
    given = AdvantageInput(
        reward=view.reward,
        mask=batch.mask,
        group=batch.group,
        num_groups=batch.num_groups,
        kept=algorithm.selection(view, ()).kept,
        correct=batch.correct,
        token_reward=token_rewards(algorithm, batch.old_logp, batch.ref_logp, batch.mask),
        values=batch.values,
        credit=batch.credit,
    )
    return algorithm.advantage(replace(given, **changes)).advantages


def loss_and_gradient(
    algorithm: Algorithm, batch: Batch, adv: Tensor, split: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, Tensor, list[LossOutput]]:
    """Summed loss and gradient of a mini-batch, processed in the micro-batches of `split`."""
    logp = batch.logp.clone().requires_grad_()
    totals = batch_totals(batch.mask, batch.group)
    outs = [
        policy_loss(
            algorithm,
            logp=logp[rows],
            old_logp=batch.old_logp[rows],
            ref_logp=batch.ref_logp[rows],
            entropy=batch.entropy[rows],
            advantages=adv[rows],
            mask=batch.mask[rows],
            totals=micro_totals(totals, rows),
        )
        for rows in split or (torch.arange(len(adv)),)
    ]
    loss = torch.stack([out.loss for out in outs]).sum()
    (grad,) = torch.autograd.grad(loss, logp, allow_unused=True)
    return loss.detach(), torch.zeros_like(logp) if grad is None else grad, outs
