"""`tiny`: the embedded model, a Qwen3 of 100,288 parameters with a word-level vocabulary of 25 for the task `chain`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

PAD, EOS = "<pad>", "<eos>"
VOCABULARY: tuple[str, ...] = (
    *map(str, range(10)),
    *(f"{sign}{i}" for sign in "+-" for i in range(1, 6)),
    "?",
    "#",
    "!",
    PAD,
    EOS,
)
PAD_ID, EOS_ID = VOCABULARY.index(PAD), VOCABULARY.index(EOS)
CONTEXT = 2048  # positions; RoPE has no table to learn, so a long limit costs nothing


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words separated by white space; an unknown word is an error, and decoding joins with single spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    """A freshly initialised `tiny`.

    Weights ~ normal(0, 1/sqrt(fan_in)): with the library's default (0.02) modular sums are not learned at this width.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=192,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        init_by_fan_in(model)
    return model


@torch.no_grad()
def init_by_fan_in(model: nn.Module) -> None:
    """Draws every matrix from normal(0, 1/sqrt(fan_in)); for a tied embedding fan_in is the width of the head."""
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(0.0, 1.0 / math.sqrt(weight.shape[1]))
