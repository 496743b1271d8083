"""Numbers about routes against loops over tokens, layers and slots."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.routing import UNKNOWN, Chosen
from harness.core.types import RolloutBatch
from harness.monitor.routing import GAP, loads, routing_metrics
from harness.train.loop import Progress, one_step
from harness.train.routes import Place, Routing, routing_of
from tests.fakes.small_moes import folder
from tests.train.test_routing import assembled

LAYERS, EXPERTS, K = 3, 6, 2


class Shape:
    """A set of routers without a model."""

    num_layers, num_experts, top_k = LAYERS, EXPERTS, K

    def under(self, this: Any) -> Any:
        raise NotImplementedError

    def recompute(self) -> Any:
        raise NotImplementedError


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """k different experts each."""
    noise = torch.rand(*shape, EXPERTS, generator=torch.Generator().manual_seed(seed))
    return noise.topk(K, dim=-1).indices


PROMPTS = ((1, 2, 3), (4,), (1, 2, 3))
LENGTHS = (7, 4, 5)  # prompt and response
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)


def routing(mode: Any = "off", seed: int = 5) -> Routing:
    sampled = [drawn((n - 1, LAYERS), seed + i).to(torch.int16) for i, n in enumerate(LENGTHS)]
    return routing_of(
        Shape(), mode, prompt_ids=PROMPTS, mask=MASK, lengths=LENGTHS, width=max(LENGTHS), sampled=sampled
    )  # fmt: skip


def run_pass(follow: Any, place: Place, chosen: torch.Tensor) -> torch.Tensor:
    """Every layer of one forward; the experts that were used."""
    done = follow(place)
    flat = chosen.flatten(0, 1)
    logits = torch.zeros(len(flat), EXPERTS)
    return torch.stack([done.route(Chosen(layer=i, logits=logits, experts=flat[:, i])) for i in range(LAYERS)], dim=1)


ALL = Place(rows=torch.arange(3), first=torch.zeros(3, dtype=torch.long), width=7)


def counted() -> list[tuple[int, int]]:
    """(row, position) of the response tokens that the policy produced and that are read."""
    return [(r, len(PROMPTS[r]) + t) for r in range(3) for t in range(4)
            if MASK[r, t] and len(PROMPTS[r]) + t < LENGTHS[r] - 1]  # fmt: skip


def test_changes_between_policies_are_counted_token_by_token() -> None:
    found = routing()
    before, after = drawn((3, 7, LAYERS), 1), drawn((3, 7, LAYERS), 2)
    run_pass(found.recording(), ALL, before)
    used = run_pass(found.updating(), ALL, after)
    assert torch.equal(used, after.flatten(0, 1)), "nothing is replayed"
    slots, tokens, anywhere = [0] * LAYERS, [0] * LAYERS, 0
    for row, at in counted():
        new = [len(set(after[row, at, i].tolist()) - set(before[row, at, i].tolist())) for i in range(LAYERS)]
        slots = [a + b for a, b in zip(slots, new, strict=True)]
        tokens = [a + (b > 0) for a, b in zip(tokens, new, strict=True)]
        anywhere += any(new)
    [changes] = found.between
    assert changes.slots.tolist() == slots
    assert changes.tokens.tolist() == tokens
    assert (changes.anywhere, changes.compared) == (anywhere, len(counted()))


@pytest.mark.parametrize("mode", ["r2", "r3"])
def test_a_replay_uses_what_was_kept_and_compares_what_would_have_been_chosen(mode: Any) -> None:
    found = routing(mode)
    assert found.sampled is not None
    before, after = drawn((3, 7, LAYERS), 1), drawn((3, 7, LAYERS), 2)
    run_pass(found.recording(), ALL, before)
    used = run_pass(found.updating(), ALL, after).view(3, 7, LAYERS, K)
    for row, length in enumerate(LENGTHS):
        want = before[row] if mode == "r2" else found.sampled.experts[row].long()
        assert torch.equal(used[row, : length - 1], want[: length - 1])
        assert torch.equal(used[row, length:], after[row, length:]), "padding is routed freely"
    assert found.between[0].compared == len(counted())


def test_a_shared_prompt_is_kept_for_all_its_rows() -> None:
    found = routing("r2")
    prompts = Place(rows=torch.tensor([0, 1]), first=torch.zeros(2, dtype=torch.long), width=3, prompts=True)
    chosen = drawn((2, 3, LAYERS), 3)
    run_pass(found.recording(), prompts, chosen)
    assert torch.equal(found.old.experts[0, :3], chosen[0].to(torch.int16))
    assert torch.equal(found.old.experts[2, :3], found.old.experts[0, :3])
    assert torch.equal(found.old.experts[1, 0], chosen[1, 0].to(torch.int16))
    assert bool((found.old.experts[1, 1:] == UNKNOWN).all()), "the padding of a shorter prompt is no prompt"


def test_loads_are_those_of_counting() -> None:
    chosen = drawn((50, LAYERS), 4) % 4  # experts 4 and 5 are never used
    found = loads(chosen, EXPERTS)
    for layer in range(LAYERS):
        counts = [int((chosen[:, layer] == e).sum()) for e in range(EXPERTS)]
        fair = sum(counts) / EXPERTS
        shares = [c / sum(counts) for c in counts]
        assert float(found.max_vio[layer]) == pytest.approx(max(counts) / fair - 1)
        sd = math.sqrt(sum((c - fair) ** 2 for c in counts) / EXPERTS)
        assert float(found.cv[layer]) == pytest.approx(sd / fair)
        assert float(found.dead[layer]) == pytest.approx(2 / 6)
        entropy = -sum(s * math.log(s) for s in shares if s)
        assert float(found.entropy[layer]) == pytest.approx(entropy / math.log(EXPERTS))


def test_a_gap_in_full_precision_is_listed_with_margin_and_flips(tmp_path: Path) -> None:
    parts = assembled(tmp_path, "mixtral", "off")
    assert folder("mixtral", tmp_path).exists()
    outcome = one_step(parts.trainer, Progress(), 0.0)
    ready, old = outcome.prepared, outcome.old_logp
    assert ready is not None
    assert ready.routing is not None
    assert ready.routing.sampled is not None
    old = ready.batch.behaviour_logp.clone()
    ready.routing.old.experts[:] = ready.routing.sampled.experts
    ready.routing.old.margins[:] = 0.5

    def measured(batch: RolloutBatch, old_logp: torch.Tensor, precise: bool = True) -> Any:
        assert ready.routing is not None
        return routing_metrics(ready.routing, batch, old_logp, None, step=3, full_precision=precise)

    row, record = measured(ready.batch, old)
    assert row["moe/gap_tokens"] == 0
    assert row["moe/sampler_selections"] == 0.0
    old[1, 2] += 3 * GAP
    start = int(ready.routing.starts[1])
    ready.routing.old.margins[1, start, 1] = 1e-6
    spot = ready.routing.old.experts[1, start, 1]
    spot[0] = next(e for e in range(4) if e not in spot.tolist())
    row, record = measured(ready.batch, old)
    assert row["moe/gap_tokens"] == 1
    assert row["moe/sampler_selections"] > 0
    [gap] = record.gaps
    assert (gap.sample, gap.token, gap.flipped) == (ready.batch.trajectories[1].sample, 2, 1)
    assert gap.gap == pytest.approx(3 * GAP, rel=1e-3)
    assert gap.margin == pytest.approx(1e-6)
    assert "moe/gap_tokens" not in measured(ready.batch, old, precise=False)[0]
    stale = replace(ready.batch, policy_version=torch.arange(ready.batch.num_rows))
    assert measured(stale, old)[0]["moe/gap_tokens"] == 0, "rows of older weights differ for another reason"
