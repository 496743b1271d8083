"""Grouped products give a model the log-probs and gradients of its usual attention."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from harness.core.errors import UsageError
from harness.models import attention
from harness.models.prepare import set_attention
from tests.models.families import build


def outputs(model: PreTrainedModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits.log_softmax(-1)
    (logits[:, -3:] * torch.linspace(-1, 1, 61)).sum().backward()
    return logits[:, -3:].detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "mistral"])
@pytest.mark.parametrize("limit", [attention.MAX_SCORES, 10])
@pytest.mark.parametrize("padded", [False, True])
def test_as_the_usual_attention(family: str, limit: int, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal and left-padded; beyond the limit the fused kernel takes over."""
    monkeypatch.setattr(attention, "MAX_SCORES", limit)
    model = build(family)
    ids = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    want = outputs(model, **inputs)
    set_attention(model, attention.NAME)
    found = outputs(model, **inputs)
    torch.testing.assert_close(found[0], want[0], atol=2e-5, rtol=1e-4)
    assert float((found[1] - want[1]).norm() / want[1].norm()) < 1e-4


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backend\.attention"):
        set_attention(build("llama"), "nothing")
