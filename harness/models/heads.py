"""The critic: a value model built from a policy."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from harness.core.shapes import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ValueModel(nn.Module):
    """A deep copy of the policy's decoder with a scalar head that starts at 0, so every first value is exactly 0.

    The head computes in float32. Right padding with causal attention needs no mask.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(policy.get_decoder())
        self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(device=policy.device)
        self.eval()

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        position_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Value of the state after each token, `[B, L]`, float32."""
        hidden = self.decoder(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        values: Tensor = self.head(hidden.float())
        return values[..., 0]
