"""The shared log-prob path equals the model's own logits, value and gradient, on every family and chunking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.models.response_logits import has_plain_head, hidden_logps, token_logps
from tests.models.families import build


def ragged(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded ids and a selection with holes, an empty row and garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 61, (5, 14), generator=generator)
    lengths = torch.tensor([14, 9, 11, 5, 13])
    position = torch.arange(14)
    select = (position >= 3) & (position < lengths[:, None] - 1) & (torch.rand(5, 14, generator=generator) > 0.2)
    select[3] = False
    return ids, select


def by_full_logits(model: PreTrainedModel, ids: Tensor, select: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A loop over selected positions, from the model's own logits."""
    logp, entropy = [], []
    for row in range(len(ids)):
        logits = model(input_ids=ids[row : row + 1]).logits[0].double() / temperature
        for t in range(ids.shape[1] - 1):
            if select[row, t]:
                p = torch.log_softmax(logits[t], -1)
                logp.append(p[ids[row, t + 1]])
                entropy.append(-(p.exp() * p).sum())
    return torch.stack(logp), torch.stack(entropy)


def gradient(model: PreTrainedModel, *outputs: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, len(outputs[0]))
    loss = sum((output.float() * weights).sum() for output in outputs)
    assert isinstance(loss, Tensor)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "qwen3_moe"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [None, 7, 1])
def test_values_and_gradients_equal_full_logits(family: str, temperature: float, chunk_tokens: int | None) -> None:
    model = build(family)
    ids, select = ragged()
    logp, entropy = token_logps(
        model, ids, select, temperature=temperature, with_entropy=True, chunk_tokens=chunk_tokens
    )
    wanted, wanted_entropy = by_full_logits(model, ids, select, temperature)
    assert entropy is not None
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), wanted, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted_entropy, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient(model, logp, entropy), gradient(model, wanted, wanted_entropy), atol=5e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "plain"), [("llama", True), ("gpt2", True), ("qwen3_moe", True), ("gemma2", False), ("granite", False)]
)
def test_heads_that_do_more_than_multiply_are_noticed(family: str, plain: bool) -> None:
    assert has_plain_head(build(family)) is plain


def test_soft_capping_is_noticed_even_where_logits_are_tiny() -> None:
    model = build("gemma2")
    model.config.final_logit_softcapping = 30.0
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.01)
    assert has_plain_head(model) is False


def test_padding_never_reaches_a_result() -> None:
    model = build("llama")
    ids, select = ragged()
    lengths = [14, 9, 11, 5, 13]
    other = ids.clone()
    for row, length in enumerate(lengths):
        other[row, length:] = 7
    one, two = (token_logps(model, x, select, temperature=1.0)[0] for x in (ids, other))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_nothing_selected_gives_nothing() -> None:
    model = build("llama")
    ids, select = ragged()
    logp, entropy = token_logps(model, ids, torch.zeros_like(select), temperature=1.0, with_entropy=True)
    assert logp.shape == (0,)
    assert entropy is not None
    assert entropy.shape == (0,)
    logp.sum().backward()


def test_chunks_hold_no_logits_until_the_backward_pass() -> None:
    """Under a chunk size, no tensor with a vocabulary axis longer than the chunk is saved for the backward pass."""
    model = build("llama")
    ids, select = ragged()
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state[select]
    targets = ids[:, 1:][select[:, :-1]]
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(tuple(x.shape)) or x, lambda x: x):
        logp, _ = hidden_logps(model, hidden, targets, temperature=1.0, chunk_tokens=4)
    assert len(logp) > 8
    assert not [shape for shape in saved if len(shape) == 2 and shape[-1] == 61 and shape != (61, 32)]


def test_without_gradients_nothing_is_recorded() -> None:
    model = build("llama")
    ids, select = ragged()
    with torch.no_grad():
        logp, _ = token_logps(model, ids, select, temperature=1.0, chunk_tokens=3)
    assert not logp.requires_grad
