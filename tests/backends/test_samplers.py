"""Samplers against the contract, and what is particular to the one on transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from harness.backends.samplers.transformers import TransformersSampler, _invert
from harness.core.ports import Sampler
from harness.core.spec import ModelSpec, TemplateSpec
from harness.models.codec import TextCodec
from harness.models.load import LoadedModel, load
from harness.models.response_logits import token_logps
from tests.contracts.sampler import Ids, SamplerContract, Subject, flat, requests
from tests.fakes.table_sampler import TableSampler, table_probabilities

QUESTIONS = ("8 +3 ?", "1 +2 -5 +4 ?", "0 -1 +1 +2 +3 -4 -5 +2 +2 -1 ?", "7 -3 +5 -2 ?")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(ModelSpec(name="tiny"), seed=0, device="cpu", dtype="float32")


def tiny_subject(model: LoadedModel, batch_tokens: int = 10**6) -> Subject:
    codec = TextCodec(model.tokenizer, TemplateSpec())
    prompts = tuple(codec.encode([{"role": "user", "content": q}]) for q in QUESTIONS)
    mark = int(model.tokenizer.convert_tokens_to_ids("#"))

    def build(eos_ids: Ids, stop: tuple[str, ...]) -> Sampler:
        return TransformersSampler(
            model.policy,
            eos_ids=eos_ids,
            pad_id=model.pad_id,
            batch_tokens=batch_tokens,
            stop=stop,
            decode=codec.decode,
        )

    @torch.no_grad()
    def score(prompt: Ids, response: Ids, temperature: float) -> tuple[list[float], list[float]]:
        ids = torch.tensor([[*prompt, *response]])
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, len(prompt) - 1 : -1] = True
        logp, entropy = token_logps(model.policy, ids, select, temperature=temperature, with_entropy=True)
        assert entropy is not None
        return logp.tolist(), entropy.tolist()

    @torch.no_grad()
    def probabilities(prompt: Ids, temperature: float) -> np.ndarray:
        logits = model.policy(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        return np.asarray((logits / temperature).softmax(-1))

    return Subject(
        build=build,
        eos_ids=model.eos_ids,
        other_end=mark,
        stop="#",
        prompts=prompts,
        score=score,
        probabilities=probabilities,
        decode=codec.decode,
    )


class TestTransformersSampler(SamplerContract):
    """One batch for everything."""

    @pytest.fixture
    def subject(self, model: LoadedModel) -> Subject:
        return tiny_subject(model)


class TestTransformersSamplerInSmallBatches(SamplerContract):
    """One prompt at a time."""

    @pytest.fixture
    def subject(self, model: LoadedModel) -> Subject:
        return tiny_subject(model, batch_tokens=40)


WORDS = ("a", "b", "c", "#", "<eos>", "d")


class TestTableSampler(SamplerContract):
    """The fake that other tests rely on."""

    @pytest.fixture
    def subject(self) -> Subject:
        logits = (0.3, -0.2, 1.1, 0.0, -0.5, -1.0)

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


def test_inversion_never_picks_what_has_no_probability() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, 5)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1.0], dtype=torch.float64)
    assert _invert(probs, u).tolist() == [1, 1, 3, 3, 3]
    top = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0))
    top[:, 4:] = 0  # nothing behind the last possible token may be reached by rounding
    assert int(_invert(top / top.sum(-1, keepdim=True), torch.full((2000,), 1.0).double()).max()) == 3


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
