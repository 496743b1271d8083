"""The transformers sampler's plans: the slow loop's results, whatever makes them fast."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.backends.samplers.slots import fits_slots
from harness.backends.samplers.transformers import (
    CPU,
    CUDA,
    LIBRARY,
    SAME_BITS,
    Plan,
    TransformersSampler,
    choose_plan,
)
from harness.core.errors import UsageError
from harness.core.ports import SampleRequest
from harness.core.spec import ModelSpec, TemplateSpec
from harness.core.types import Completion
from harness.models.codec import TextCodec
from harness.models.load import load
from tests.contracts.sampler import flat, requests
from tests.models.families import SMALL, build
from tests.oracles.sampling import Row, one_by_one, with_the_librarys_cache

PLANS = {"library": LIBRARY, "same bits": SAME_BITS, "cpu": CPU, "cuda": CUDA}
PROMPTS = ((5, 6, 7), (9, 8, 7, 6, 5, 4, 3, 11, 12), (20,), (30, 31, 32, 33), (40, 41, 42), (13, 14, 15, 16, 17, 18))
LONGER = tuple(p for p in PROMPTS if len(p) > 1)  # reading them is told apart from a step
EOS = (2, 17, 50)
LIMIT = 20


def hybrid(family: str) -> PreTrainedModel:
    """Sliding windows beside full attention; convolution states beside full attention."""
    torch.manual_seed(1)
    model: PreTrainedModel
    if family == "gemma3":
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SMALL, sliding_window=5, layer_types=["sliding_attention", "full_attention"])
        )
    else:
        options = {key: value for key, value in SMALL.items() if key != "head_dim"}
        model = Lfm2ForCausalLM(Lfm2Config(**options, layer_types=["conv", "full_attention"]))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.3)
    return model.eval()


def large_enough(dtype: torch.dtype) -> PreTrainedModel:
    """Weights that are packed, a vocabulary that is drawn from in blocks, heads that are shared."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=5000, hidden_size=256, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
            head_dim=64, intermediate_size=640, tie_word_embeddings=True, max_position_embeddings=256,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, weight.shape[1] ** -0.5)
    return model.to(dtype).eval()


def sampler(
    policy: PreTrainedModel, plan: Plan | None, batch_tokens: int = 10**6, **options: Any
) -> TransformersSampler:
    eos = options.pop("eos", EOS)
    return TransformersSampler(policy, eos_ids=eos, pad_id=0, batch_tokens=batch_tokens, plan=plan, **options)


def rows(answers: Sequence[Sequence[Completion]]) -> list[Any]:
    return [(c.token_ids, c.logp, c.entropy) for c in flat(answers)]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["llama", "granite", "qwen3_moe", "gpt2"])
def test_every_plan_draws_what_the_slow_loop_draws(family: str, plan: str) -> None:
    check_against_the_slow_loop(build(family), PLANS[plan], 0.9, slow_rows(family, 0.9))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "lfm2"])
def test_other_caches_are_sampled_exactly(family: str) -> None:
    """Sliding windows and recurrent states stay with the library's cache."""
    policy = small(family)
    assert choose_plan(policy) == LIBRARY
    check_against_the_slow_loop(policy, None, 1.0, slow_rows(family, 1.0))


def small(family: str) -> PreTrainedModel:
    return hybrid(family) if family in ("gemma3", "lfm2") else build(family)


@cache
def slow_rows(family: str, temperature: float) -> list[Row]:
    """What the slow loop draws for four siblings of each prompt."""
    policy = small(family)
    return [
        one_by_one(policy, r.prompt_ids, key, LIMIT, set(EOS), temperature)
        for r in requests(PROMPTS, 4)
        for key in r.keys
    ]


def check_against_the_slow_loop(
    policy: PreTrainedModel, plan: Plan | None, temperature: float, want: Sequence[Row]
) -> None:
    engine = sampler(policy, plan)
    found = flat(engine.generate(requests(PROMPTS, 4), max_new_tokens=LIMIT, temperature=temperature))
    for c, (ids, logp, entropy) in zip(found, want, strict=True):
        assert c.token_ids == ids
        np.testing.assert_allclose(c.logp, logp, atol=2e-4)
        np.testing.assert_allclose(c.entropy or (), entropy, atol=2e-4)
    assert len({len(ids) for ids, _, _ in want}) > 3, "rows must end at different times"


@pytest.mark.parametrize(("siblings", "temperature", "limit"), [(8, 1.0, 35), (3, 0.6, 12), (1, 1.7, 60)])
def test_tiny_keeps_the_librarys_results_bit_by_bit(siblings: int, temperature: float, limit: int) -> None:
    """Recorded traces and the reference results were sampled this way."""
    model = load(ModelSpec(name="tiny"), seed=1, device="cpu", dtype="float32")
    codec = TextCodec(model.tokenizer, TemplateSpec())
    questions = (
        "8 +3 +1 ?",
        "1 +2 -5 +4 ?",
        "0 -1 +1 +2 +3 -4 -5 +2 ?",
        "7 -3 +5 -2 ?",
        "3 +1 +1 ?",
        "9 -2 -2 +5 +5 ?",
    )
    asked = requests([codec.encode([{"role": "user", "content": q}]) for q in questions], siblings)
    assert choose_plan(model.policy) == SAME_BITS
    engine = sampler(model.policy, None, eos=model.eos_ids)
    found = rows(engine.generate(asked, max_new_tokens=limit, temperature=temperature))
    want = with_the_librarys_cache(model.policy, asked, limit, set(model.eos_ids), model.pad_id, temperature)
    assert found == want
    assert len({len(ids) for ids, _, _ in found}) > 2


def test_nothing_else_in_the_batch_changes_a_response() -> None:
    """Alone, in another order, with more siblings, through few slots: the same tokens, and numbers to rounding."""
    policy = large_enough(torch.float32)
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(5000) for _ in range(n)) for n in (3, 41, 7, 7, 30)]
    eos = tuple(range(150))
    assert choose_plan(policy) == CPU
    assert sampler(policy, None, eos=eos).exact_repeat
    assert not sampler(large_enough(torch.bfloat16), None, eos=eos).exact_repeat

    def generate(asked: Sequence[SampleRequest], **options: int) -> list[list[Completion]]:
        return sampler(policy, None, eos=eos, **options).generate(asked, max_new_tokens=30, temperature=1.0)

    asked = requests(prompts, 2)
    together = rows(generate(asked))
    assert len({len(ids) for ids, _, _ in together}) > 5
    for others in (
        rows(generate(asked[::-1])[::-1]),
        rows([generate([r])[0] for r in asked]),
        rows([group[:2] for group in generate(requests(prompts, 7))]),
        rows(generate(asked, batch_tokens=300)),
        rows([[generate([replace(r, keys=(key,))])[0][0] for key in r.keys] for r in asked]),
    ):
        for (ids, logp, entropy), (other_ids, other_logp, other_entropy) in zip(together, others, strict=True):
            assert ids == other_ids
            np.testing.assert_allclose(logp, other_logp, atol=1e-5)
            np.testing.assert_allclose(entropy, other_entropy, atol=1e-5)


@contextmanager
def batch_sizes(policy: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """(lines, tokens per line) of every call."""
    seen: list[tuple[int, int]] = []
    hook = policy.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def test_freed_slots_go_to_waiting_requests() -> None:
    """No more lines than asked for, fewer steps than batch after batch, the same responses."""
    policy = build("llama")
    asked = requests(LONGER, 4)
    slots, limit = 8, 30
    tokens = slots * (max(map(len, LONGER)) + limit)
    with batch_sizes(policy) as one_after_another:
        want = sampler(policy, replace(CPU, refill=False), tokens).generate(
            asked, max_new_tokens=limit, temperature=1.0
        )
    with batch_sizes(policy) as refilled:
        found = sampler(policy, CPU, tokens).generate(asked, max_new_tokens=limit, temperature=1.0)
    assert rows(found) == rows(want)
    steps = [lines for lines, width in refilled if width == 1]
    assert max(steps) <= slots
    assert len(steps) < len([1 for _, width in one_after_another if width == 1])


def test_finished_lines_are_dropped_at_once() -> None:
    """On CPU a step costs what its lines cost: never a whole block more than there are responses under way."""
    policy = build("llama")
    asked = requests(LONGER, 6)
    with batch_sizes(policy) as seen:
        answers = flat(sampler(policy, CPU).generate(asked, max_new_tokens=40, temperature=1.0))
    steps = [lines for lines, width in seen if width == 1]
    for t, lines in enumerate(steps, start=1):
        going_on = sum(len(c.token_ids) > t for c in answers)
        assert going_on <= lines < going_on + 4


@pytest.mark.parametrize("stop", [(), ("17", "4 2")])
def test_asking_the_device_less_often_changes_nothing(stop: tuple[str, ...]) -> None:
    """A GPU is asked every few tokens; ends, limits and stop strings within them are found all the same."""
    policy = build("llama")
    asked = requests(PROMPTS, 6)

    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    found = []
    for every, refill in ((1, False), (3, True), (8, False), (8, True), (100, True)):
        plan = replace(CUDA, check_every=every, refill=refill)
        engine = sampler(policy, plan, 200, eos=(2,), stop=stop, decode=decode)
        found.append(engine.generate(asked, max_new_tokens=17, temperature=1.0))
    for other in found[1:]:
        assert [(c.token_ids, c.finish_reason) for c in flat(other)] == [
            (c.token_ids, c.finish_reason) for c in flat(found[0])
        ]
    assert {c.finish_reason for c in flat(found[0])} == {"stop", "length"}


def test_the_weights_of_the_moment_are_sampled_and_the_model_is_given_back() -> None:
    policy, asked = large_enough(torch.float32), requests(PROMPTS, 2)
    engine = sampler(policy, None)
    before = engine.generate(asked, max_new_tokens=10, temperature=1.0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    after = engine.generate(asked, max_new_tokens=10, temperature=1.0)
    assert rows(after) != rows(before)
    assert rows(after) == rows(sampler(policy, None).generate(asked, max_new_tokens=10, temperature=1.0))
    assert policy.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in policy.modules())
    loss = policy(input_ids=torch.tensor([PROMPTS[0]])).logits.logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_the_model_is_given_back_after_a_failure() -> None:
    policy = large_enough(torch.float32)
    with pytest.raises(IndexError):
        sampler(policy, None).generate(requests([(1, 2, 10**6)], 2), max_new_tokens=3, temperature=1.0)
    assert policy.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in policy.modules())


def test_models_that_cannot_attend_to_everything_keep_their_own_cache() -> None:
    assert fits_slots(build("llama"))
    assert not fits_slots(build("gemma2"))
    eager = build("llama")
    eager.set_attn_implementation("eager")
    assert not fits_slots(eager)
    check_against_the_slow_loop(eager, None, 0.9, slow_rows("llama", 0.9))


def test_what_cannot_be_sampled_is_refused() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=1))
    with pytest.raises(UsageError, match=r"(?s)MambaForCausalLM.*past_key_values.*another"):
        sampler(mamba, None)
    policy = build("llama")
    with pytest.raises(UsageError, match=r"(?s)temperature -1.*or more"):
        sampler(policy, None).generate(requests(PROMPTS, 1), max_new_tokens=3, temperature=-1.0)
    with pytest.raises(UsageError, match="an empty stop string"):
        sampler(policy, None, stop=("a", ""), decode=str)
    with pytest.raises(UsageError, match="nothing decodes"):
        sampler(policy, None, stop=("a",))


def test_requests_without_samples_have_none() -> None:
    asked = [SampleRequest(prompt_ids=(5, 6), keys=()), *requests(PROMPTS[:1], 2)]
    for plan in PLANS.values():
        answers = sampler(build("llama"), plan).generate(asked, max_new_tokens=3, temperature=1.0)
        assert [len(group) for group in answers] == [0, 2]
