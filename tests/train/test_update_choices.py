"""Every choice about how an update is computed gives the plain path's gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.assemble import Assembly, assemble
from harness.core.errors import UsageError
from harness.core.spec import BackendSpec, LoraSpec, UpdateSpec
from harness.train.loop import Progress, one_step
from harness.train.networks import blocks
from harness.train.prepare import Prepared
from harness.train.update import old_logps, plan_updates, update
from tests.fakes.small_runs import run_spec
from tests.train.test_steps import PUBLISHED, STILL, gradient, prepared_batch

PLAIN = {"skip_rows": False, "sort_by_length": False, "chunk_logits": False, "reuse_forward": False}
CHOICES = [
    {"share_prompts": True},
    {"skip_rows": True},
    {"sort_by_length": True},
    {"chunk_logits": True},
    {"reuse_forward": True},
    {"checkpoint_activations": True},
    {"share_prompts": True, "checkpoint_activations": True},
]
NO_CLIPPING = {"prompts_per_step": 6, "grad_clip": 1e9}


def with_choices(arm: str, choices: dict[str, bool], **changes: Any) -> Assembly:
    backend = BackendSpec(update=UpdateSpec.model_validate({**PLAIN, **choices}))
    spec = run_spec(arm, **({"recipe": NO_CLIPPING} | changes)).model_copy(update={"backend": backend})
    return assemble(spec.model_copy(update={"overrides": changes.get("overrides", spec.overrides)}))


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    flat_a, flat_b = (torch.cat([x.detach().flatten() for x in g]) for g in (a, b))
    return float((flat_a - flat_b).norm() / flat_b.norm())


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "+".join(c))
@pytest.mark.parametrize("arm", ["grpo", "gspo", "dapo", "gfpo"])
def test_the_gradient_is_that_of_the_plain_path(arm: str, choices: dict[str, bool]) -> None:
    """In one piece and in many: a group is then spread over micro-batches, and its prompt still runs once."""
    plain = with_choices(arm, {})
    want = gradient(plain, prepared_batch(plain), 10**9)
    parts = with_choices(arm, choices)
    for tokens in (10**9, 300, 60):
        assert relative(gradient(parts, prepared_batch(parts), tokens), want) < 1e-5


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "+".join(c))
def test_a_whole_step_of_ppo_is_that_of_the_plain_path(choices: dict[str, bool]) -> None:
    """Reference, old log-probs, critic values and both optimizer steps, in small pieces."""
    recipe = {**NO_CLIPPING, "micro_batch_tokens": 200}
    plain, parts = (with_choices("ppo", c, recipe=recipe, **PUBLISHED) for c in ({}, choices))
    assert plain.trainer.nets.reference is not None
    first, second = (one_step(p.trainer, Progress(step=50), 0.0) for p in (plain, parts))
    for one, two in zip(first.traces, second.traces, strict=True):
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert two.critic is not None
        assert two.critic["grad_norm"] == pytest.approx(one.critic["grad_norm"], rel=1e-4)  # type: ignore[index]
    start = list(with_choices("ppo", {}, recipe=recipe).model.policy.parameters())
    moved, also = ([p - s for p, s in zip(x.model.policy.parameters(), start, strict=True)] for x in (plain, parts))
    assert relative(also, moved) < 1e-2  # Adam divides rounding by rounding where a gradient is nearly 0


def test_a_prompt_runs_once_for_all_its_siblings() -> None:
    parts = with_choices("grpo", {"share_prompts": True}, recipe={**NO_CLIPPING, "micro_batch_tokens": 100})
    ready = prepared_batch(parts)
    nets = replace(parts.trainer.nets, micro_batch_tokens=100)
    found = list(blocks(ready.rows, range(ready.batch.num_rows), nets))
    ran = [p for b in found for p in b.prompts]
    assert sorted(ran) == sorted(set(ready.batch.prompt_ids))
    assert any(len(b.micros) > 1 for b in found)
    rows = sorted(int(r) for b in found for m in b.micros for r in m.rows)
    assert rows == list(range(ready.batch.num_rows))
    for block in found:
        for micro in block.micros:
            for row, place in zip(micro.rows.tolist(), micro.prompt.tolist(), strict=True):
                assert block.prompts[place] == ready.batch.prompt_ids[row]


def test_rows_with_prompts_of_their_own_run_them_themselves() -> None:
    parts = with_choices("grpo", {"share_prompts": True})
    ready = prepared_batch(parts)
    lone = [ready.rows.prompt.index(p) for p in range(len(ready.rows.prompts))]
    [block] = blocks(ready.rows, lone, parts.trainer.nets)
    assert block.prompts == ()


def test_the_samplers_own_log_probs_as_the_base_of_the_ratio() -> None:
    """`old_logp=rollout`: no pass for old log-probs, and the gap between engines is in the ratio."""
    parts = assemble(run_spec("gspo", overrides={"old_logp": "rollout"}, recipe=NO_CLIPPING))
    ready = prepared_batch(parts)
    shifted = replace(ready, batch=replace(ready.batch, behaviour_logp=ready.batch.behaviour_logp - 0.01))
    trainer = parts.trainer
    outcome = one_step(trainer, Progress(), 0.0)
    assert outcome.old_logp is not None
    batch = outcome.prepared.batch if outcome.prepared else ready.batch
    assert torch.equal(outcome.old_logp, batch.behaviour_logp)
    one, two = (ratios(parts, r) for r in (ready, shifted))
    torch.testing.assert_close(two, one * math.exp(0.01))


def ratios(parts: Assembly, ready: Prepared) -> Tensor:
    """Of the first mini-batch, whose weights are those that sampled."""
    plan = plan_updates(ready, parts.algorithm, (0,))
    old = old_logps(ready, plan, parts.algorithm, parts.trainer.nets).clone()
    steps = update(ready, parts.algorithm, parts.trainer.nets, parts.optimizers, STILL, old, plan, width=35)
    trace = next(done.policy for done in steps if done.policy is not None)
    assert trace.on_policy
    return (trace.logp - trace.old_logp).exp()[trace.mask]


def test_the_base_of_the_ratio_leaves_nothing_to_correct() -> None:
    with pytest.raises(UsageError, match="correction"):
        assemble(run_spec("gspo", overrides={"old_logp": "rollout", "correction": "importance"}))


def test_adapters_are_all_that_is_trained() -> None:
    recipe = {**NO_CLIPPING, "lora": LoraSpec(rank=4, alpha=8).model_dump()}
    for choices in ({}, {"share_prompts": True}, {"checkpoint_activations": True}):
        parts = with_choices("ppo", choices, recipe=recipe)
        before = {n: p.detach().clone() for n, p in parts.model.policy.named_parameters()}
        assert before.keys() > set(parts.optimizers.policy.names)
        one_step(parts.trainer, Progress(step=50), 0.0)  # beyond the critic's warm-up
        moved = {n for n, p in parts.model.policy.named_parameters() if not torch.equal(p, before[n])}
        assert moved
        assert moved <= set(parts.optimizers.policy.names)
        assert all("lora_" in n for n in moved)


def test_adapter_targets_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="targets"):
        with_choices("grpo", {}, recipe={**NO_CLIPPING, "lora": {"targets": ["nothing"]}})
