"""Embedding and head that add to the weight's gradient in place: values and gradients of the ordinary ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.models.accumulate import embed, head_logps


def plain(head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = (head(hidden) / temperature).log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_head(temperature: float, chunk_tokens: int, with_entropy: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 13, bias=False).double()
    hidden = torch.randn(9, 6, dtype=torch.double, requires_grad=True)
    targets = torch.randint(13, (9,))
    before = torch.randn_like(head.weight)
    found = []
    for mine in (False, True):
        head.weight.grad = before.clone()
        hidden.grad = None
        if mine:
            options = {"temperature": temperature, "with_entropy": with_entropy, "chunk_tokens": chunk_tokens}
            logp, entropy = head_logps(head, hidden, targets, **options)
        else:
            logp, entropy = plain(head, hidden, targets, temperature)
        loss = (logp * torch.linspace(-1, 2, 9)).sum()
        if with_entropy:
            assert entropy is not None
            loss = loss + (entropy * torch.linspace(1, -1, 9)).sum()
        loss.backward()
        assert hidden.grad is not None
        found.append((logp, hidden.grad, head.weight.grad - before))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two.double(), one, atol=2e-6, rtol=1e-5)


def test_a_frozen_head_passes_the_gradient_on_and_keeps_none() -> None:
    head = nn.Linear(6, 13, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 6, requires_grad=True)
    logp, _ = head_logps(head, hidden, torch.tensor([1, 2, 3]), temperature=1.0, with_entropy=False, chunk_tokens=2)
    logp.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_embedding() -> None:
    layer = nn.Embedding(11, 5, padding_idx=3)
    ids = torch.tensor([[1, 3, 1], [10, 0, 3]])
    weights = torch.randn(2, 3, 5)
    (layer(ids) * weights).sum().backward()
    wanted = layer.weight.grad
    layer.weight.grad = None
    for _ in range(2):  # gradients add up
        out = embed(layer, ids)
        assert torch.equal(out, layer(ids))
        (out * weights).sum().backward()
    assert wanted is not None
    torch.testing.assert_close(layer.weight.grad, 2 * wanted)


def test_what_a_frozen_embedding_returns_needs_no_gradient() -> None:
    layer = nn.Embedding(4, 2).requires_grad_(False)
    assert not embed(layer, torch.tensor([[1]])).requires_grad
