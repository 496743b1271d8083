"""What an engine is given as weights; no engine is needed to see it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
)

from harness.backends.samplers.vllm.weights import (
    engine_head_size,
    head_size,
    head_sizes,
    named_tensors,
    write_folder,
)
from harness.core.errors import UsageError
from harness.models.tiny import tiny_model, tiny_tokenizer
from harness.models.tiny_moe import tiny_moe_model
from tests.contracts.subjects import random_moe

IDS = torch.tensor([[3, 11, 20, 5, 6, 1, 24, 2, 9, 9, 14]])


def qwen(head: int, *, tied: bool = True) -> Qwen3ForCausalLM:
    """Random weights everywhere, the norms included."""
    config = Qwen3Config(
        vocab_size=25, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=head,
        intermediate_size=64, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=None, eos_token_id=24, pad_token_id=23,
    )  # fmt: skip
    torch.manual_seed(2)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("head", [4, 8, 16])
@torch.no_grad()
def test_widened_heads_compute_the_same(head: int) -> None:
    narrow = qwen(head)
    config = copy.deepcopy(narrow.config)
    config.head_dim = 32
    wide = Qwen3ForCausalLM(config).eval()
    missing, unexpected = wide.load_state_dict(named_tensors(narrow, 32), strict=False)
    assert missing == ["lm_head.weight"], "tied to the embedding"
    assert unexpected == []
    torch.testing.assert_close(wide(IDS).logits, narrow(IDS).logits, rtol=1e-4, atol=1e-4)
    assert wide.model.layers[0].self_attn.head_dim == 32


@torch.no_grad()
def test_a_mixture_of_experts_is_widened_alike(tmp_path: Path) -> None:
    """Read back from a checkpoint with the given weights, as an engine reads them."""
    narrow = tiny_moe_model("tiny-moe", 2).eval()
    write_folder(narrow, tiny_tokenizer(), tmp_path, 32)
    save_file({k: v.contiguous() for k, v in named_tensors(narrow, 32).items()}, tmp_path / "model.safetensors")
    wide = Qwen3MoeForCausalLM.from_pretrained(tmp_path).eval()
    assert engine_head_size(narrow, "cpu") == wide.config.head_dim == 32
    torch.testing.assert_close(wide(IDS).logits, narrow(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [random_moe, tiny_model, lambda: qwen(32, tied=False)])
def test_names_and_values_are_those_of_a_checkpoint(build: object, tmp_path: Path) -> None:
    """As save_pretrained writes it: experts one by one, a tied head left out."""
    policy: PreTrainedModel = build()  # type: ignore[operator]
    policy.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    given = named_tensors(policy, head_size(policy))
    assert set(given) == set(saved)
    for name, tensor in saved.items():
        torch.testing.assert_close(given[name], tensor, rtol=0, atol=0)


@pytest.mark.system("python:peft")
@torch.no_grad()
def test_adapters_are_added_to_the_weights_they_belong_to() -> None:
    """A plain model with the given weights computes what the adapted one does, under the plain model's names."""
    from peft import LoraConfig, inject_adapter_in_model

    plain = qwen(16, tied=False)
    adapted = copy.deepcopy(plain)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "down_proj"]), adapted)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.normal_(0.0, 0.3)
    weights = named_tensors(adapted, 16)
    assert set(weights) == set(named_tensors(plain, 16))
    want = adapted(IDS).logits
    assert not torch.allclose(want, plain(IDS).logits, atol=1e-2)
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(IDS).logits, want, rtol=1e-4, atol=1e-4)


def test_only_small_heads_of_a_known_model_are_widened_and_only_on_cpu() -> None:
    assert engine_head_size(tiny_model(), "cpu") == 32
    assert engine_head_size(tiny_model(), "cuda") == 16
    assert head_sizes(tiny_model()) == {16, 32}
    assert head_sizes(random_moe()) == {32}
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
    ))  # fmt: skip
    with pytest.raises(UsageError, match="of head size 8"):
        engine_head_size(llama, "cpu")


def test_an_engines_folder_holds_no_weights(tmp_path: Path) -> None:
    policy = tiny_model()
    write_folder(policy, tiny_tokenizer(), tmp_path, 32)
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")]
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.architectures, config.head_dim, policy.config.head_dim) == (["Qwen3ForCausalLM"], 32, 16)
