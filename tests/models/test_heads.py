"""The critic's network."""

from __future__ import annotations

import pytest
import torch

from harness.models.heads import ValueModel
from tests.models.families import build


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_values_start_at_zero_and_learn_apart_from_the_policy(family: str) -> None:
    policy = build(family)
    before = [weight.clone() for weight in policy.parameters()]
    critic = ValueModel(policy)
    ids = torch.randint(3, 61, (3, 7))
    assert torch.equal(critic(ids), torch.zeros(3, 7))
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(3):
        (critic(ids) - 1).square().mean().backward()
        optimizer.step()
    assert critic(ids).abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert all(weight.grad is None for weight in policy.parameters())
    moved = [
        p
        for a, p in zip(build(family).get_decoder().parameters(), critic.decoder.parameters(), strict=True)
        if not torch.equal(a, p)
    ]
    assert moved  # the backbone learns too


def test_values_are_causal_so_padding_does_not_matter() -> None:
    critic = ValueModel(build("llama"))
    torch.nn.init.normal_(critic.head.weight)
    ids = torch.randint(3, 61, (2, 9))
    other = ids.clone()
    other[:, 6:] = 5
    torch.testing.assert_close(critic(ids)[:, :6], critic(other)[:, :6])


def test_a_bfloat16_policy_gets_float32_values() -> None:
    critic = ValueModel(build("llama").to(torch.bfloat16))
    assert critic(torch.randint(3, 61, (2, 4))).dtype == torch.float32
