"""Inverting the CDF: whole rows and rows in blocks, against a walk through the probabilities in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.backends.samplers import draw as module
from harness.backends.samplers.draw import BLOCK, ONE_PASS, Drawn, draw, invert

SIZES = (2, 25, ONE_PASS, ONE_PASS + 1, ONE_PASS + BLOCK, 12_345)


def random_logits(rows: int, size: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * scale


def check(drawn: Drawn, logits: torch.Tensor, u: torch.Tensor, temperature: float) -> None:
    """cdf(token - 1) <= u < cdf(token) but for float32 weights; log-probs and entropies as in float64."""
    logp = (logits.double() / temperature).log_softmax(-1)
    cdf = logp.exp().cumsum(-1)
    above = cdf.gather(1, drawn.token[:, None])[:, 0]
    below = above - logp.exp().gather(1, drawn.token[:, None])[:, 0]
    assert bool((below <= u + 2e-6).all())
    assert bool((u < above + 2e-6).all())
    want = logp.gather(1, drawn.token[:, None])[:, 0]
    assert bool(torch.isfinite(want).all()), "a token of probability 0 was drawn"
    np.testing.assert_allclose(drawn.logp, want, atol=3e-5)
    np.testing.assert_allclose(drawn.entropy, torch.special.entr(logp.exp()).sum(-1), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_draws_invert_the_distribution_exactly(size: int, dtype: torch.dtype) -> None:
    u = torch.linspace(0, 1 - 2.0**-53, 64, dtype=torch.float64)
    for scale in (0.0, 1.0, 20.0):
        for temperature in (1.0, 0.6):
            logits = random_logits(64, size, scale).to(dtype)
            check(draw(logits, u, temperature), logits, u, temperature)


@given(
    weights=st.lists(st.sampled_from([-torch.inf, -300.0, -40.0, 0.0, 1.0]), min_size=1, max_size=12),
    first=st.integers(0, 3 * BLOCK),
    u=st.one_of(st.sampled_from([0.0, 0.5, 1 - 2.0**-53]), st.floats(0, 1, exclude_max=True)),
)
def test_few_possible_tokens_among_many_impossible_ones(weights: list[float], first: int, u: float) -> None:
    """Anywhere in the blocks, at either end of the interval: a possible token, and the very one."""
    logits = torch.full((1, ONE_PASS + 700), -torch.inf)
    logits[0, first : first + len(weights)] = torch.tensor(weights)
    logits[0, first] = 0.5
    check(draw(logits, torch.tensor([u], dtype=torch.float64), 1.0), logits, torch.tensor([u]), 1.0)


def test_blocks_draw_what_whole_rows_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(300, 3000, 3.0)
    u = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = draw(logits, u, 0.8)
    monkeypatch.setattr(module, "ONE_PASS", 10)
    blocks = draw(logits, u, 0.8)
    assert torch.equal(whole.token, blocks.token)
    np.testing.assert_allclose(whole.logp, blocks.logp, atol=2e-6)
    np.testing.assert_allclose(whole.entropy, blocks.entropy, atol=2e-5)


@pytest.mark.parametrize("size", [100, ONE_PASS + 100])
def test_a_row_does_not_depend_on_the_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on their number, nor on how many rows are worked on at once."""
    logits = random_logits(40, size, 2.0)
    u = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = draw(logits, u, 1.0)
    alone = [draw(logits[i : i + 1], u[i : i + 1], 1.0) for i in range(40)]
    monkeypatch.setitem(module.CHUNK, "cpu", 3 * size)
    for other in (Drawn(*map(torch.cat, zip(*alone, strict=True))), draw(logits, u, 1.0)):
        assert all(torch.equal(a, b) for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("size", [30, ONE_PASS + 30])
def test_broken_logits_give_some_token_and_no_number(size: int) -> None:
    """A policy whose weights are NaN must reach the checks that report it."""
    drawn = draw(torch.full((2, size), torch.nan), torch.tensor([0.1, 0.9], dtype=torch.float64), 1.0)
    assert bool(((drawn.token >= 0) & (drawn.token < size)).all())
    assert bool(torch.isnan(drawn.logp).all())


def test_inversion_never_picks_what_has_no_probability() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, 5)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1.0], dtype=torch.float64)
    assert invert(probs, u).tolist() == [1, 1, 3, 3, 3]
    top = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0))
    top[:, 4:] = 0  # nothing behind the last possible token may be reached by rounding
    assert int(invert(top / top.sum(-1, keepdim=True), torch.full((2000,), 1.0).double()).max()) == 3


@pytest.mark.parametrize("size", SIZES)
def test_temperature_0_is_greedy_whatever_the_uniforms(size: int) -> None:
    logits = random_logits(16, size, 3.0)
    for u in (torch.zeros(16), torch.full((16,), 0.999)):
        drawn = draw(logits, u, 0.0)
        assert torch.equal(drawn.token, logits.argmax(-1))
        assert not drawn.logp.any()
        assert not drawn.entropy.any()
