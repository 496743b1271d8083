"""Policies of transformers as subjects of the sampler contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.core.ports import Sampler
from harness.core.spec import TemplateSpec
from harness.models.codec import TextCodec
from harness.models.load import LoadedModel
from harness.models.response_logits import token_logps
from harness.models.tiny import EOS_ID, PAD_ID, VOCABULARY, tiny_tokenizer
from tests.contracts.sampler import Ids, Subject

QUESTIONS = ("8 +3 ?", "1 +2 -5 +4 ?", "0 -1 +1 +2 +3 -4 -5 +2 +2 -1 ?", "7 -3 +5 -2 ?")


class Trainer:
    """Log-probs and distributions as the trainer computes them."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy

    @torch.no_grad()
    def score(self, prompt: Ids, response: Ids, temperature: float = 1.0) -> tuple[list[float], list[float]]:
        ids = torch.tensor([[*prompt, *response]])
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, len(prompt) - 1 : -1] = True
        logp, entropy = token_logps(self.policy, ids, select, temperature=temperature, with_entropy=True)
        assert entropy is not None
        return logp.tolist(), entropy.tolist()

    @torch.no_grad()
    def probabilities(self, prompt: Ids, temperature: float) -> np.ndarray:
        logits = self.policy(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        return np.asarray((logits / temperature).softmax(-1))

    @contextmanager
    def other_weights(self) -> Iterator[None]:
        """Every single weight moves, by about a third of the spread of its tensor."""
        kept = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        noise = torch.Generator().manual_seed(17)
        try:
            with torch.no_grad():
                for p in self.policy.parameters():
                    scale = 0.3 * float(p.std()) + 0.05
                    p.add_(scale * torch.randn(p.shape, generator=noise).to(p))
            yield
        finally:
            with torch.no_grad():
                for name, p in self.policy.named_parameters():
                    p.copy_(kept[name])


def subject_of(model: LoadedModel | PreTrainedModel, build: Callable[[Ids, tuple[str, ...]], Sampler]) -> Subject:
    """A policy over the vocabulary of `tiny`, and a way to sample from it."""
    policy = model.policy if isinstance(model, LoadedModel) else model
    codec, trainer = TextCodec(tiny_tokenizer(), TemplateSpec()), Trainer(policy)
    return Subject(
        build=build,
        eos_ids=(EOS_ID,),
        other_end=VOCABULARY.index("#"),
        stop="#",
        prompts=tuple(codec.encode([{"role": "user", "content": q}]) for q in QUESTIONS),
        score=trainer.score,
        probabilities=trainer.probabilities,
        decode=codec.decode,
        other_weights=trainer.other_weights,
    )


def random_moe() -> Qwen3MoeForCausalLM:
    """A small mixture of experts with random weights that all matter."""
    config = Qwen3MoeConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=96, moe_intermediate_size=48, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, tie_word_embeddings=False, max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Qwen3MoeForCausalLM(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.normal_(0.0, p.shape[-1] ** -0.5)
    return model


def save_with_tokenizer(policy: PreTrainedModel, folder: Path) -> None:
    """A folder for `--model`."""
    policy.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
