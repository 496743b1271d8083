"""Mixtures of experts of toy size with the embedded tokenizer, as folders that load like any other model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from harness.models.tiny import EOS_ID, PAD_ID, VOCABULARY, tiny_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}
GROUPED = {"moe_intermediate_size": 16, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
MOES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_hidden_layers": 4, "head_dim": 8, "num_experts": 64, "num_experts_per_tok": 8,
         "moe_intermediate_size": 8, "norm_topk_prob": True},
    ),
    "olmoe": ("Olmoe", {"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}),
    "mixtral": ("Mixtral", {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe": (  # sigmoid scores, groups of experts, a dense first layer
        "Glm4Moe",
        {"num_hidden_layers": 3, "head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
         "routed_scaling_factor": 1.7, **GROUPED},
    ),
}  # fmt: skip


def build(family: str) -> PreTrainedModel:
    """Weights that route tokens to different experts and give different log-probs."""
    name, options = MOES[family]
    config = getattr(transformers, f"{name}Config")(**SMALL, **options)
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
        for label, bias in model.named_buffers():
            if label.endswith("e_score_correction_bias"):
                bias.normal_(0.0, 0.2)
    return model.eval()


def folder(family: str, parent: Path) -> Path:
    """The model and its tokenizer on disk."""
    path = parent / family
    if not path.exists():
        build(family).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path
