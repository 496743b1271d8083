"""Samplers against the contract, and what is particular to the one on transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from harness.backends.samplers.transformers import TransformersSampler
from harness.core.ports import Sampler
from harness.core.spec import ModelSpec, TemplateSpec
from harness.models.codec import TextCodec
from harness.models.load import LoadedModel, load
from tests.contracts.sampler import ExactRepeatContract, Ids, Subject, flat, requests
from tests.contracts.subjects import subject_of
from tests.fakes.table_sampler import TableSampler, table_probabilities


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32")


def tiny_subject(model: LoadedModel, batch_tokens: int = 10**6) -> Subject:
    def build(eos_ids: Ids, stop: tuple[str, ...]) -> Sampler:
        return TransformersSampler(
            model.policy,
            eos_ids=eos_ids,
            pad_id=model.pad_id,
            batch_tokens=batch_tokens,
            stop=stop,
            decode=TextCodec(model.tokenizer, TemplateSpec()).decode,
        )

    return subject_of(model, build)


class TestTransformersSampler(ExactRepeatContract):
    """One batch for everything."""

    @pytest.fixture
    def subject(self, model: LoadedModel) -> Subject:
        return tiny_subject(model)


class TestTransformersSamplerInSmallBatches(ExactRepeatContract):
    """One prompt at a time."""

    @pytest.fixture
    def subject(self, model: LoadedModel) -> Subject:
        return tiny_subject(model, batch_tokens=40)


WORDS = ("a", "b", "c", "#", "<eos>", "d")


class TestTableSampler(ExactRepeatContract):
    """The fake that other tests rely on."""

    @pytest.fixture
    def subject(self) -> Subject:
        logits = [0.3, -0.2, 1.1, 0.0, -0.5, -1.0]

        @contextmanager
        def other_weights() -> Iterator[None]:
            kept = list(logits)
            logits[:] = kept[::-1]
            yield
            logits[:] = kept

        def decode(ids: object) -> str:
            return " ".join(WORDS[i] for i in ids if i != 4)  # type: ignore[attr-defined]

        def score(prompt: Ids, response: Ids, temperature: float) -> tuple[list[float], list[float]]:
            p = table_probabilities(logits, temperature)
            return np.log(p[list(response)]).tolist(), [float(-(p * np.log(p)).sum())] * len(response)

        return Subject(
            build=lambda eos, stop: TableSampler(logits, eos, stop, decode),
            eos_ids=(4,),
            other_end=3,
            stop="#",
            prompts=((0,), (0, 1, 2), (5, 5)),
            score=score,
            probabilities=lambda prompt, temperature: table_probabilities(logits, temperature),
            decode=decode,
            other_weights=other_weights,
        )


def test_tokens_do_not_depend_on_the_batch_size(model: LoadedModel) -> None:
    asked = requests(tiny_subject(model).prompts, 5)
    found = []
    for size in (1, 60, 200, 10**6):
        subject = tiny_subject(model, size)
        sampler = subject.build(subject.eos_ids, ())
        found.append([c.token_ids for c in flat(sampler.generate(asked, max_new_tokens=30, temperature=1.0))])
    assert all(tokens == found[0] for tokens in found)


def test_nothing_asked_gives_nothing(model: LoadedModel) -> None:
    subject = tiny_subject(model)
    assert subject.build(subject.eos_ids, ()).generate([], max_new_tokens=3, temperature=1.0) == []


def test_a_sliding_window_model_is_sampled_exactly() -> None:
    """A cache that forgets: the log-probs still are the trainer's."""
    config = Qwen3Config(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=32, use_sliding_window=True, sliding_window=4, max_window_layers=1, bos_token_id=None,
        eos_token_id=24, pad_token_id=23,
    )  # fmt: skip
    torch.manual_seed(3)
    policy = Qwen3ForCausalLM(config).eval()
    sampler = TransformersSampler(policy, eos_ids=[24], pad_id=23, batch_tokens=10**6)
    asked = requests([(1, 2, 3), (4, 5, 6, 7, 8, 9, 10)], 3)
    answers = sampler.generate(asked, max_new_tokens=12, temperature=1.0)
    for request, group in zip(asked, answers, strict=True):
        for c in group:
            ids = torch.tensor([[*request.prompt_ids, *c.token_ids]])
            with torch.no_grad():
                logp = policy(input_ids=ids).logits[0].log_softmax(-1)
            first = len(request.prompt_ids) - 1
            want = [float(logp[first + i, token]) for i, token in enumerate(c.token_ids)]
            np.testing.assert_allclose(c.logp, want, atol=1e-4)
