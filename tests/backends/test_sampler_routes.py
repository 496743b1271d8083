"""Routes of sampled responses, under every plan: those that one forward over prompt and response would choose."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from harness.backends.samplers.transformers import CPU, CUDA, LIBRARY, SAME_BITS, Plan, TransformersSampler
from harness.core.ports import SampleRequest
from harness.core.routing import Watched, new_experts
from harness.models.routers import Routers
from harness.models.tiny import EOS_ID, PAD_ID
from tests.fakes.small_moes import build

PLANS = {"library": LIBRARY, "same_bits": SAME_BITS, "cpu": CPU, "cuda": CUDA}
PROMPTS = ((3, 11, 12), (4, 10, 15, 16, 17), (5,), (6, 13, 14, 18, 19, 10, 11), (7, 12))
SIBLINGS, LIMIT = 6, 20


def requests() -> list[SampleRequest]:
    """Prompts of different lengths; what is drawn decides how long the responses are."""
    return [
        SampleRequest(prompt_ids=p, keys=tuple((0, 0, i, j, 0) for j in range(SIBLINGS))) for i, p in enumerate(PROMPTS)
    ]


@torch.no_grad()
def chosen(model: PreTrainedModel, routers: Routers, ids: list[int]) -> torch.Tensor:
    """Routes of all tokens but the last, [T - 1, layers, k]."""
    watched = Watched(routers)
    with watched.forward():
        model(input_ids=torch.tensor([ids[:-1]]), use_cache=False)
    return watched.last


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_every_plan_tells_the_routes_of_its_tokens(family: str, name: str) -> None:
    """With a small memory, so that lines end, move and are refilled while others go on."""
    model = build(family)
    routers = Routers(model)
    plan: Plan = PLANS[name]
    sampler = TransformersSampler(
        model, eos_ids=(EOS_ID, 0, 1), pad_id=PAD_ID, batch_tokens=300, plan=plan, routers=routers
    )
    sampler.sync(1)
    lengths, differing, choices = set(), 0, 0
    for request, answers in zip(requests(), sampler.generate(requests(), max_new_tokens=LIMIT, temperature=1.0),
                                strict=True):  # fmt: skip
        for done in answers:
            assert done.routes is not None
            ids = [*request.prompt_ids, *done.token_ids]
            want = chosen(model, routers, ids)
            assert done.routes.shape == want.shape
            differing += int(new_experts(done.routes, want).sum())
            choices += want.numel()
            lengths.add(len(done.token_ids))
    assert len(lengths) > 5, "responses of many lengths"
    assert choices > 1000
    assert differing <= choices // 1000, "ties alone may fall another way"


def test_a_sampler_that_nobody_asked_tells_nothing() -> None:
    sampler = TransformersSampler(build("mixtral"), eos_ids=(EOS_ID,), pad_id=PAD_ID, batch_tokens=300)
    sampler.sync(1)
    assert sampler.generate(requests()[:1], max_new_tokens=3, temperature=1.0)[0][0].routes is None
