"""Ratios: how far the policy has moved from the old policy, `[B, T]`, with the derivative each algorithm defines."""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from harness.core.masked import masked, row_mean
from harness.core.parts import Ratio
from harness.core.registry import part
from harness.core.shapes import Bool, Float, Tensor


def log_ratio(
    logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """log pi - log pi_old, 0 at masked positions."""
    return masked(logp, mask) - masked(old_logp, mask).detach()


@part
@final
class Token(Ratio):
    """r_it = exp(clamp(l_it - l_old_it, -guard, guard)); gradient r_it inside the guard, 0 outside.

    Source: PPO, GRPO, DAPO; the guard is verl's (TRL has none).
    """

    kind: ClassVar[str] = "token"
    guard: float | None = Field(default=20.0, gt=0.0)

    @property
    def per_token(self) -> bool:
        return True

    def __call__(
        self, logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        d = log_ratio(logp, old_logp, mask)
        return (d if self.guard is None else d.clamp(-self.guard, self.guard)).exp()


@part
@final
class Sequence(Ratio):
    """s_i = exp(mean over the row's tokens of l - l_old), the geometric mean of its token ratios, on every token.

    Gradient s_i / n_i at each token. Source: GSPO Eq. 7; the guard (upper end only) is verl's.
    """

    kind: ClassVar[str] = "sequence"
    guard: float | None = Field(default=10.0, gt=0.0)

    def __call__(
        self, logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        log_s = row_mean(log_ratio(logp, old_logp, mask), mask)
        s = (log_s if self.guard is None else log_s.clamp(max=self.guard)).exp()
        return s[:, None].expand(mask.shape)


@part
@final
class SequenceProduct(Ratio):
    """s_i = exp(clamp(sum over the row's tokens of l - l_old, -guard, guard)): the likelihood ratio of the response.

    Gradient s_i at each token inside the guard, 0 outside. GSPO without its length normalisation (Eq. 7 without the
    exponent 1 / n_i): its spread grows with the length, so that no clip range fits short and long responses.
    """

    kind: ClassVar[str] = "sequence_product"
    guard: float | None = Field(default=20.0, gt=0.0)

    def __call__(
        self, logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        log_s = log_ratio(logp, old_logp, mask).sum(-1)
        s = (log_s if self.guard is None else log_s.clamp(-self.guard, self.guard)).exp()
        return s[:, None].expand(mask.shape)


@part
@final
class SequenceValue(Ratio):
    """s_it = sg[s_i] pi(y_t) / sg[pi(y_t)]: the value of the sequence ratio with the gradient of its own token.

    Source: GSPO section 4.3 (GSPO-token). Equal to `sequence` when advantages are constant within a row.
    """

    kind: ClassVar[str] = "sequence_value"
    guard: float | None = Field(default=10.0, gt=0.0)

    def __call__(
        self, logp: Float[Tensor, "B T"], old_logp: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        own = masked(logp, mask)
        log_s = row_mean(log_ratio(own.detach(), old_logp, mask), mask)[:, None] + (own - own.detach())
        return (log_s if self.guard is None else log_s.clamp(max=self.guard)).exp()
