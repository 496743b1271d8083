"""GFPO's difficulty by a t-digest: exact while it is small, close beyond, pure state, refused where it cannot be."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.parts.selection import Adaptive
from algorithms.parts.tdigest import HEAD, follow
from harness.core.algorithm import override
from harness.core.errors import UsageError
from harness.core.registry import algorithm
from tests.algorithms.test_slots import rows

needs_fastdigest = pytest.mark.system("python:fastdigest")
few = settings(max_examples=40)
rewards = st.floats(-1, 1) | st.integers(0, 8).map(lambda n: n / 8)  # continuous, or the nine levels of eight siblings
streams = st.lists(rewards, min_size=1, max_size=60)


def quartiles(seen: list[float]) -> torch.Tensor:
    return torch.quantile(torch.tensor(seen, dtype=torch.float64), torch.tensor([0.25, 0.5, 0.75]).double())


@needs_fastdigest
@few
@given(stream=streams)
def test_it_is_exact_up_to_its_number_of_centroids(stream: list[float]) -> None:
    found, _ = follow((), stream, 60)
    for end, after in enumerate(found, start=1):
        assert after.values == end
        torch.testing.assert_close(torch.tensor(after.quartiles).double(), quartiles(stream[:end]), rtol=0, atol=1e-7)


@needs_fastdigest
@few
@given(stream=streams, cut=st.integers(0, 60), centroids=st.sampled_from([10, 25, 100]))
def test_it_continues_from_its_state_to_the_bit(stream: list[float], cut: int, centroids: int) -> None:
    """Also through JSON, as a checkpoint keeps it."""
    whole, end = follow((), stream, centroids)
    first, between = follow((), stream[:cut], centroids)
    restored = tuple(json.loads(json.dumps(between)))
    second, last = follow(restored, stream[cut:], centroids)
    assert (first + second, last) == (whole, end)
    assert len(end) <= len(HEAD) + 2 * centroids


@needs_fastdigest
def test_beyond_that_it_is_close_by_rank() -> None:
    """Half of a percent of all values off at most, of three distributions."""
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for values in (draws, draws**6, torch.where(draws < 0.3, -draws, draws)):
        found, _ = follow((), values.tolist(), 100)
        for q, estimate in zip((0.25, 0.5, 0.75), found[-1].quartiles, strict=True):
            rank = float((values < estimate).double().mean())
            assert rank == pytest.approx(q, abs=0.005)


@needs_fastdigest
@few
@given(stream=st.lists(rewards, min_size=1, max_size=12), before=st.lists(rewards, max_size=40))
def test_small_histories_choose_the_same_k(stream: list[float], before: list[float]) -> None:
    """As the exact quantiles, but where a mean reward is a quartile up to rounding."""
    exact = Adaptive(k_very_hard=4, k_hard=3, k_medium=2, k_easy=1, warmup_prompts=10)
    sketched = exact.model_copy(update={"tdigest": 60})
    _, means = exact.follow((), before)
    _, state = sketched.follow((), before)
    want, all_means = exact.follow(means, stream)
    found, _ = sketched.follow(state, stream)
    for i, mean in enumerate(stream):
        seen = list(all_means[: len(before) + i + 1])
        if float((quartiles(seen) - mean).abs().min()) > 1e-9:
            assert found[i] == want[i]


@needs_fastdigest
def test_it_selects_like_the_exact_one_in_a_batch() -> None:
    view = rows([1, 2, 3, 4] * 3, [0.0] * 4 + [1.0] * 4 + [0.5] * 4, [0] * 4 + [1] * 4 + [2] * 4)
    exact = Adaptive(k_very_hard=4, k_hard=3, k_medium=2, k_easy=1, warmup_prompts=1)
    a, b = exact(view, ()), exact.model_copy(update={"tdigest": 50})(view, ())
    assert torch.equal(a.kept, b.kept)
    assert (a.history, b.history[: len(HEAD)]) == ((0.0, 1.0, 0.5), (3.0, 3.0, 1.5, 0.0, 1.0))
    assert exact.state != exact.model_copy(update={"tdigest": 50}).state


@needs_fastdigest
@pytest.mark.parametrize(
    ("changes", "word"),
    [({"selection.tdigest": 100, "selection.window": 10}, "forgets nothing"), ({"selection.tdigest": 3}, "tdigest")],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        override(algorithm("gfpo"), {"selection": "adaptive", **changes})


def test_without_the_package_it_is_refused_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastdigest", None)
    with pytest.raises(UsageError, match=r"(?s)fastdigest.*rl-harness\[tdigest\]"):
        override(algorithm("gfpo"), {"selection": "adaptive", "selection.tdigest": 100})
    assert Adaptive().follow((), [0.5, 0.2])[1] == (0.5, 0.2)
