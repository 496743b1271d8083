"""The sampler's benchmark counts what was sampled."""

from __future__ import annotations

import math

import pytest

from harness.commands.bench_sampler import SamplerSubject, library_tokens, sampler_speed
from harness.core.spec import ModelSpec, TemplateSpec
from harness.models.codec import TextCodec
from harness.models.load import load


def test_both_are_timed_on_the_same_prompts() -> None:
    found = sampler_speed(
        SamplerSubject(
            model="tiny", task="chain", params={}, dtype="float32", prompts=3, samples=2, max_new_tokens=8, repeats=2
        )
    )
    for key in ("ours_tokens_per_s", "generate_tokens_per_s", "ratio"):
        assert math.isfinite(found[key])
        assert found[key] > 0
    assert found["prompts"] == 3


@pytest.mark.parametrize("limit", [1, 40])
def test_tokens_of_the_library_are_counted_up_to_the_end(limit: int) -> None:
    model = load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32")
    prompt = TextCodec(model.tokenizer, TemplateSpec()).encode([{"role": "user", "content": "8 +3 +1 ?"}])
    tokens = library_tokens(model, [prompt, prompt[1:]], 8, limit, seed=0)
    assert tokens == 16 if limit == 1 else 16 * 3 <= tokens < 16 * limit
