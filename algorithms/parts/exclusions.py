"""Exclusions: rows that leave the loss altogether, policy term and penalties."""

from __future__ import annotations

from typing import ClassVar, final

from harness.core.parts import Exclusion, ExclusionView
from harness.core.registry import part
from harness.core.shapes import Bool, Tensor


@part
@final
class Truncated(Exclusion):
    """Overlong filtering: a response cut at the limit teaches nothing, but its reward stays in the group's statistics.

    The row keeps counting as a response in B. Source: DAPO 3.4; TRL `mask_truncated_completions`.
    """

    kind: ClassVar[str] = "truncated"

    def __call__(self, view: ExclusionView) -> Bool[Tensor, "B"]:
        return view.truncated


@part
@final
class Rejected(Exclusion):
    """Rows that the selection rejected leave every denominator, instead of staying with an advantage of 0.

    Makes GFPO's gradient about G / k larger than the paper's. Source: TRL's former GFPO trainer.
    """

    kind: ClassVar[str] = "rejected"
    counted: ClassVar[bool] = False

    def __call__(self, view: ExclusionView) -> Bool[Tensor, "B"]:
        return ~view.kept
