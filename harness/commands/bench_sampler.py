"""`harness bench`: tokens per second of the transformers sampler and of the library's own `generate`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from harness.backends.samplers.transformers import TransformersSampler
from harness.core.ports import SampleRequest
from harness.core.randomness import counter
from harness.core.registry import build_task
from harness.core.spec import Dtype, ModelSpec, TemplateSpec
from harness.models.codec import TextCodec
from harness.models.load import LoadedModel, load

GENERATION_TOKENS = 65536  # lines x columns of our cache


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSubject:
    """What is sampled, and how often it is timed."""

    model: str = "smollm2-135m"
    task: str = "reasoning_gym:chain_sum"
    params: dict[str, Any] = field(default_factory=lambda: {"min_terms": 2, "max_terms": 2})
    device: str = "cpu"
    dtype: Dtype = "bfloat16"
    threads: int = 1
    prompts: int = 8
    samples: int = 8
    max_new_tokens: int = 64
    warm_up: int = 1
    repeats: int = 5


def sampler_speed(subject: SamplerSubject) -> dict[str, Any]:
    """Medians over repeats in which both answer the same prompts in turn; `ratio` is the median of ours / theirs.

    Both draw from the whole distribution at temperature 1 and stop at the same end tokens or limit; their random
    numbers differ, so tokens are counted, up to the end token. Ours also returns log-probs and entropies. Sets the
    number of threads of the process.
    """
    torch.set_num_threads(subject.threads)
    model = load(ModelSpec(name=subject.model), seed=0, device=subject.device, dtype=subject.dtype)
    codec = TextCodec(model.tokenizer, TemplateSpec())
    task = build_task(subject.task, dict(subject.params))
    items = [task.item("train", i) for i in range(subject.prompts)]
    prompts = [codec.encode(item.messages) for item in items]
    engine = TransformersSampler(
        model.policy, eos_ids=model.eos_ids, pad_id=model.pad_id, batch_tokens=GENERATION_TOKENS
    )

    def ours(number: int) -> int:
        asked = [
            SampleRequest(
                prompt_ids=ids, keys=tuple((0, number, counter(item.id), j, 0) for j in range(subject.samples))
            )
            for ids, item in zip(prompts, items, strict=True)
        ]
        answers = engine.generate(asked, max_new_tokens=subject.max_new_tokens, temperature=1.0)
        return sum(len(c.token_ids) for group in answers for c in group)

    def theirs(number: int) -> int:
        return library_tokens(model, prompts, subject.samples, subject.max_new_tokens, seed=number)

    pairs = [
        (_tokens_per_s(ours, number), _tokens_per_s(theirs, number))
        for number in range(subject.warm_up + subject.repeats)
    ][subject.warm_up :]
    return {
        "model": subject.model,
        "dtype": subject.dtype,
        "threads": subject.threads,
        "prompts": subject.prompts,
        "samples": subject.samples,
        "max_new_tokens": subject.max_new_tokens,
        "ours_tokens_per_s": statistics.median(a for a, _ in pairs),
        "generate_tokens_per_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


@torch.inference_mode()
def library_tokens(
    model: LoadedModel, prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, seed: int
) -> int:
    """Answers left-padded prompts by `generate`; the number of tokens up to each first end token."""
    width = max(len(p) for p in prompts)
    device = model.policy.device
    ids = torch.tensor([[model.pad_id] * (width - len(p)) + [*p] for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=samples,
        max_new_tokens=max_new_tokens, eos_token_id=list(model.eos_ids), pad_token_id=model.pad_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.policy.generate(ids, attention_mask=mask, generation_config=config)[:, width:]
    ended = torch.isin(found, torch.tensor(model.eos_ids, device=device))
    return int((ended.cumsum(-1) - ended.long() == 0).sum())


def _tokens_per_s(sample: Callable[[int], int], number: int) -> float:
    start = time.perf_counter()
    tokens = sample(number)  # Python numbers: a GPU has finished when it returns
    return tokens / (time.perf_counter() - start)
