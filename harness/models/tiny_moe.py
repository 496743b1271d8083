"""`tiny-moe` and `tiny-moe-32`: embedded Qwen3-MoE models with the vocabulary of `tiny`, of 2, 4 or 8 layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.models.tiny import CONTEXT, EOS_ID, PAD_ID, VOCABULARY

if TYPE_CHECKING:
    from transformers import Qwen3MoeForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The experts of one layer."""

    experts: int
    top_k: int  # experts of a token
    width: int  # hidden units of an expert


MIXTURES = {
    "tiny-moe": Mixture(experts=8, top_k=2, width=64),
    "tiny-moe-32": Mixture(experts=32, top_k=8, width=16),
}
COLDSTARTS = {name: {2: 3, 4: 1, 8: 1} for name in MIXTURES}  # layers, the default first -> shipped initial weights
EXPERTS = "grouped_mm"  # measured: see harness.models.experts


def coldstart_family(name: str, layers: int) -> str:
    """What the names of its cold starts begin with."""
    return f"{name}-l{layers}"


def tiny_moe_model(name: str, layers: int, seed: int = 0) -> Qwen3MoeForCausalLM:
    """A freshly initialised mixture: the sizes of `tiny`, its feed-forward layers replaced by experts.

    Gates as in Qwen3-MoE: softmax over all experts, of it the top k, divided by their sum. No auxiliary loss.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    mixture = MIXTURES[name]
    config = Qwen3MoeConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=mixture.top_k * mixture.width,  # of layers without experts, of which there are none
        num_experts=mixture.experts,
        num_experts_per_tok=mixture.top_k,
        moe_intermediate_size=mixture.width,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        output_router_logits=False,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
        attn_implementation="sdpa",
        experts_implementation=EXPERTS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(config)
        init_experts_by_fan_in(model)
    return model


@torch.no_grad()
def init_experts_by_fan_in(model: nn.Module) -> None:
    """Draws every matrix from normal(0, 1/sqrt(fan_in)), experts `[E, out, in]` and router `[E, in]` included.

    The choice of experts does not depend on the scale of the router. Orthogonal rows were not better balanced at the
    start (sd of the load .54 against .51, E=8, 12 seeds), rows orthogonal to the mean state were (.14), but not after
    the cold start (sd, largest and smallest load alike), and neither was an auxiliary loss of .01.
    """
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.normal_(0.0, 1.0 / math.sqrt(weight.shape[-1]))
