"""Aggregates: per-token loss -> scalar. Denominators come from the mini-batch's totals; an empty batch gives 0."""

from __future__ import annotations

from typing import ClassVar, Literal, final

from pydantic import Field

from harness.core.expect import expect_shape
from harness.core.masked import masked_sum
from harness.core.parts import Aggregate
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor
from harness.core.types import BatchTotals


def _rows(totals: BatchTotals, count_empty: bool) -> float:
    return max(totals.rows if count_empty else totals.rows_nonempty, 1.0)


@part
@final
class TokenMean(Aggregate):
    """sum of m L / N: every token of the optimizer step weighs the same.

    `scope="group"` is DAPO Eq. 8 read literally: the token mean of each group, then the mean over groups.
    `scope="micro"` is the token mean of each micro-batch, then the mean over micro-batches, so that memory settings
    change the loss (TRL `bnpo`; verl's older workers). Source: DAPO; verl and TRL `dapo` normalise over the step.
    """

    kind: ClassVar[str] = "token-mean"
    scope: Literal["batch", "group", "micro"] = "batch"

    @property
    def per_micro_batch(self) -> bool:
        return self.scope == "micro"

    def __call__(self, loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], totals: BatchTotals) -> Float[Tensor, ""]:
        rows = masked_sum(loss, mask)
        if self.scope == "batch":
            return rows.sum() / max(totals.tokens, 1.0)
        if self.scope == "micro":
            return rows.sum() / mask.sum().clamp(min=1) / totals.micro_batches
        assert totals.group_tokens is not None, "scope=group needs batch_totals(mask, group)"
        expect_shape("aggregate token-mean", tuple(rows.shape), "the rows", group_tokens=totals.group_tokens)
        return (rows / totals.group_tokens.clamp(min=1)).sum() / max(totals.groups, 1.0)


@part
@final
class SeqMeanTokenMean(Aggregate):
    """sum_i (1 / n_i) sum_t m L / B+: every response weighs the same, whatever its length.

    `count_empty` divides by B, empty rows included (TRL). `eps` is added to n_i (verl: 1e-8). Source: GRPO, GSPO.
    """

    kind: ClassVar[str] = "seq-mean-token-mean"
    count_empty: bool = False
    eps: float = Field(default=0.0, ge=0.0)

    def __call__(self, loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], totals: BatchTotals) -> Float[Tensor, ""]:
        length = mask.sum(-1).clamp(min=1).to(loss.dtype) + self.eps
        return (masked_sum(loss, mask) / length).sum() / _rows(totals, self.count_empty)


@part
@final
class SeqMeanTokenSum(Aggregate):
    """sum of m L / B+: a response weighs its length. `count_empty` divides by B. Source: verl; TRL `luspo`."""

    kind: ClassVar[str] = "seq-mean-token-sum"
    count_empty: bool = False

    def __call__(self, loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], totals: BatchTotals) -> Float[Tensor, ""]:
        return masked_sum(loss, mask).sum() / _rows(totals, self.count_empty)


@part
@final
class SeqMeanTokenSumNorm(Aggregate):
    """sum of m L / (B L), L a constant (default: the mini-batch's padded width).

    `per_row=False` divides by L alone, as verl does. Source: Dr. GRPO; TRL `dr_grpo` (L = completion limit).
    """

    kind: ClassVar[str] = "seq-mean-token-sum-norm"
    length: float | None = Field(default=None, gt=0.0)
    per_row: bool = True

    def __call__(self, loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], totals: BatchTotals) -> Float[Tensor, ""]:
        width = max(totals.width, 1.0) if self.length is None else self.length
        return masked_sum(loss, mask).sum() / (width * (max(totals.rows, 1.0) if self.per_row else 1.0))
