"""Precisions: the copy that samples, the output head in float32, what a device lacks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models.accumulate import head_logps
from harness.models.float_head import Float32Head, use_float32_head
from harness.models.load import load, require_dtype
from harness.models.response_logits import has_plain_head, token_logps
from harness.models.rollout_copy import RolloutCopy, int8_rounded, quantised
from harness.models.shared_prompts import PromptStates
from tests.models.families import build

IDS = torch.arange(24).view(2, 12) % 50 + 3
SELECT = torch.zeros_like(IDS, dtype=torch.bool)
SELECT[:, 4:-1] = True


def rounded_by_hand(row: list[float]) -> list[float]:
    """One output channel: integers from -127 to 127 times the largest / 127."""
    scale = max(map(abs, row)) / 127
    return [round(w / scale) * scale if scale else w for w in row]


def test_int8_is_symmetric_absmax_per_output_channel() -> None:
    w = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    w[3] = 0.0
    w[1] *= 1e-6
    got = int8_rounded(w)
    for row, want in zip(got, w.tolist(), strict=True):
        assert row.tolist() == pytest.approx(rounded_by_hand(want), rel=1e-6, abs=1e-12)
    scale = w.abs().amax(1, keepdim=True) / 127
    assert bool(((got - w).abs() <= scale * 0.5001).all())
    torch.testing.assert_close(int8_rounded(got), got, rtol=1e-6, atol=0.0, msg="a grid point stays where it is")
    levels = (got[0] / (w[0].abs().max() / 127)).round()
    assert float(levels.abs().max()) == 127


def test_experts_are_rounded_channel_by_channel() -> None:
    w = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(int8_rounded(w)[1], int8_rounded(w[1]))
    across = int8_rounded(w, inputs=-2)
    assert torch.equal(across[2], int8_rounded(w[2].T).T)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_what_int8_rounds_and_what_it_leaves(family: str) -> None:
    model = build(family)
    names = dict(quantised(model))
    rest = {n for n, _ in model.named_parameters()} - set(names)
    assert all("norm" in n or "embed" in n or "head" in n or n.endswith("gate.weight") for n in rest), rest
    copy = RolloutCopy(model, "int8")
    theirs, mine = dict(model.named_parameters()), dict(copy.policy.named_parameters())
    for name in theirs:
        want = int8_rounded(theirs[name], names[name]) if name in names else theirs[name]
        assert torch.equal(mine[name], want)
    if family == "qwen3_moe":
        experts = [n for n in names if names[n] == -1 and theirs[n].dim() == 3]
        assert experts
        for module in model.modules():
            module.is_transposed = True  # [E, in, out], as some families store them
        assert {dict(quantised(model))[n] for n in experts} == {-2}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_copy_follows_the_policy_and_leaves_it_alone(dtype: str, family: str) -> None:
    model = build(family)
    before = {n: p.clone() for n, p in model.named_parameters()}
    copy = RolloutCopy(model, dtype)
    first = copy.policy(input_ids=IDS).logits.detach()
    assert copy.policy.dtype == (torch.float32 if dtype == "int8" else getattr(torch, dtype))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(p.requires_grad for p in copy.policy.parameters())
    gap = (first.float() - model(input_ids=IDS).logits.detach()).abs().max()
    assert 0 < float(gap) < 0.5
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert torch.equal(copy.policy(input_ids=IDS).logits, first), "not before it is refreshed"
    copy.refresh()
    fresh = RolloutCopy(model, dtype).policy(input_ids=IDS).logits
    assert torch.equal(copy.policy(input_ids=IDS).logits, fresh)


def test_a_precision_does_not_reach_the_rotary_frequencies() -> None:
    """They are a buffer, kept in float32 when a checkpoint is loaded in half precision; so must a cast."""
    for dtype in ("bfloat16", "float16"):
        rounded = load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype=dtype).policy
        copied = RolloutCopy(load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32").policy, dtype).policy
        for model in (rounded, copied):
            assert {b.dtype for b in model.buffers()} == {torch.float32}
            assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
        assert torch.equal(rounded(input_ids=IDS % 25).logits, copied(input_ids=IDS % 25).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_float32_logits_are_those_of_widened_weights_and_states(family: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    hidden = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    narrow = model(input_ids=IDS).logits
    use_float32_head(model)
    use_float32_head(model)
    head = cast("nn.Linear", model.get_output_embeddings())
    assert isinstance(head, Float32Head)
    want = hidden.float() @ head.weight.float().T
    got = head(hidden)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert head.weight.dtype == dtype
    full = model(input_ids=IDS).logits
    assert not torch.equal(full.float(), narrow.float())
    if family == "llama":
        assert torch.equal(full, got)
        with head.holding():
            assert torch.equal(model(input_ids=IDS).logits, got)
        assert head._held is None


def double_reference(model: PreTrainedModel, temperature: float) -> torch.Tensor:
    """The same log-probs from the decoder's states in float64."""
    hidden = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state[SELECT].double()
    logits = hidden @ cast("nn.Linear", model.get_output_embeddings()).weight.double().T / temperature
    return logits.log_softmax(-1).gather(1, IDS[:, 1:][SELECT[:, :-1]][:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_a_float32_head_are_exact_in_every_path(temperature: float) -> None:
    """Plain, in chunks, and with shared prompts; against float64 from the same states."""
    model = build("llama").to(torch.bfloat16)
    model.requires_grad_(True)
    rough, _ = token_logps(model, IDS, SELECT, temperature=temperature)
    use_float32_head(model)
    assert has_plain_head(build_with_head())
    want = double_reference(model, temperature).detach()
    for size in (None, 3):
        got, _ = token_logps(model, IDS, SELECT, temperature=temperature, chunk_tokens=size)
        assert float((got.detach().double() - want).abs().max()) < 2e-6
    assert float((rough.detach().double() - want).abs().max()) > 1e-4
    prompts = [IDS[i, :5].tolist() for i in range(2)]
    mask = torch.ones(2, 7, dtype=torch.bool)
    states = PromptStates(model, prompts, 0)
    shared, _ = states.logps(torch.arange(2), IDS[:, 5:], mask, temperature=temperature)
    assert float((shared.detach().double() - want).abs().max()) < 0.05, "the decoder's own rounding, not the head's"


def build_with_head() -> PreTrainedModel:
    model = build("llama").to(torch.bfloat16)
    use_float32_head(model)
    return model


def test_the_gradient_in_place_is_that_of_autograd() -> None:
    model = build_with_head()
    head = cast("Any", model.get_output_embeddings())
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    targets = torch.arange(9)
    grads = []
    for in_place in (True, False):
        states = hidden.clone().requires_grad_()
        head.weight.grad = None
        if in_place:
            logp, entropy = head_logps(head, states, targets, temperature=0.9, with_entropy=True, chunk_tokens=4)
            assert entropy is not None
        else:
            logits = head(states) / 0.9
            full = logits.log_softmax(-1)
            logp, entropy = full.gather(1, targets[:, None])[:, 0], -(full.exp() * full).sum(-1)
        (logp.sum() + 0.3 * entropy.sum()).backward()
        assert head.weight.grad.dtype == torch.bfloat16
        assert states.grad is not None
        grads.append((logp.detach(), head.weight.grad.float(), states.grad.float()))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-5, atol=1e-5)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = build("llama")
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, 61)))
    with pytest.raises(UsageError, match=r"a Sequential, not a linear layer"):
        use_float32_head(model)


def test_a_device_without_a_precision_says_so() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        require_dtype(dtype, "cpu")
    with pytest.raises(UsageError, match=r"float8_e4m3fn on cpu(.|\n)*float32, or another device"):
        require_dtype(torch.float8_e4m3fn, "cpu")
    with pytest.raises(UsageError, match="float16"):
        load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="int8")
