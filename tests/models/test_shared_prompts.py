"""A prompt that runs once for its siblings gives each of them the log-probs and gradients of its own run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.errors import UsageError
from harness.core.spec import UpdateSpec
from harness.models.heads import ValueModel
from harness.models.prepare import prepare_decoder
from harness.models.response_logits import token_logps
from harness.models.shared_prompts import PromptStates, can_share, require_sharing
from tests.models.families import build

PROMPTS = ((3, 4, 5, 6, 7), (8, 9), (10, 11, 12))
OF_ROW = torch.tensor([2, 0, 0, 1, 0, 2])
FAMILIES = ["llama", "gpt2", "qwen3_moe"]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Responses and a mask with holes (observations), a response of one token and garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randint(3, 61, (len(OF_ROW), 7), generator=generator)
    lengths = torch.tensor([7, 1, 4, 6, 5, 7])
    mask = torch.arange(7) < lengths[:, None]
    mask[3, 2] = mask[5, 0] = False
    return responses, mask


def alone(model: PreTrainedModel, responses: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same tokens, each row with its own prompt, one row at a time."""
    logps, entropies = [], []
    for row, prompt in enumerate(OF_ROW.tolist()):
        ids = torch.cat([torch.tensor(PROMPTS[prompt]), responses[row]])[None]
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, len(PROMPTS[prompt]) - 1 : -1] = mask[row]
        logp, entropy = token_logps(model, ids, select, temperature=temperature, with_entropy=True)
        assert entropy is not None
        logps.append(logp)
        entropies.append(entropy)
    return torch.cat(logps), torch.cat(entropies)


def weighed(*outputs: Tensor) -> Tensor:
    return torch.stack([(x.float() * torch.linspace(-1, 2, len(x))).sum() for x in outputs]).sum()


def gradient_of(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_gradients_are_those_of_rows_alone(family: str, recompute: bool) -> None:
    model = build(family)
    responses, mask = batch()
    want = alone(model, responses, mask, 0.8)
    weighed(*want).backward()
    wanted = gradient_of(model)
    model.zero_grad()
    prepare_decoder(model, UpdateSpec(share_prompts=True, checkpoint_activations=recompute))
    states = PromptStates(model, PROMPTS, pad_id=0)
    logp, entropy = states.logps(OF_ROW, responses, mask, temperature=0.8, with_entropy=True)
    assert entropy is not None
    torch.testing.assert_close(logp, want[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, want[1], atol=2e-5, rtol=1e-5)
    weighed(logp, entropy).backward()
    states.backward()
    assert float((gradient_of(model) - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_add_up(family: str) -> None:
    """The prompts' states collect what every piece sends them; pieces may leave prompts unused."""
    model = build(family)
    responses, mask = batch()
    found = []
    for pieces in ([torch.arange(6)], [torch.tensor([1]), torch.tensor([4, 0, 2]), torch.tensor([5, 3])]):
        model.zero_grad()
        states = PromptStates(model, PROMPTS, pad_id=0)
        for rows in pieces:
            logp, _ = states.logps(OF_ROW[rows], responses[rows], mask[rows], temperature=1.0)
            (logp.square() * 0.1).sum().backward()
        states.backward()
        found.append(gradient_of(model))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-5


def test_a_value_model_shares_prompts_too() -> None:
    critic = ValueModel(build("llama"))
    torch.nn.init.normal_(critic.head.weight)
    responses, mask = batch()
    rows = [torch.cat([torch.tensor(PROMPTS[p]), responses[i]]) for i, p in enumerate(OF_ROW.tolist())]
    want = torch.cat(
        [
            critic(row[None])[0, len(PROMPTS[p]) - 1 : -1][mask[i]]
            for i, (row, p) in enumerate(zip(rows, OF_ROW.tolist(), strict=True))
        ]
    )
    weighed(want).backward()
    wanted = gradient_of(critic)
    critic.zero_grad()
    states = PromptStates(critic, PROMPTS, pad_id=0)
    values = states.values(OF_ROW, responses, mask)
    torch.testing.assert_close(values, want, atol=2e-5, rtol=1e-5)
    weighed(values).backward()
    states.backward()
    assert float((gradient_of(critic) - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_can_share_are_recognised(family: str) -> None:
    assert can_share(build(family), 0)


@pytest.mark.parametrize("family", ["gemma2", "granite", "mistral"])
def test_sliding_windows_and_scaled_logits_are_refused(family: str) -> None:
    model = build(family)
    assert not can_share(model, 0)
    with pytest.raises(UsageError, match="share_prompts"):
        require_sharing(model, 0, family)
