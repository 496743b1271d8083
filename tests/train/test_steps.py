"""One rollout step through the real model: gradients, ratios, what is skipped and what is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness.assemble import Assembly, assemble
from harness.core.shapes import Tensor
from harness.records import step_row
from harness.train.loop import Progress, one_step
from harness.train.networks import micro_batches, policy_logps
from harness.train.objective import batch_totals, micro_totals, policy_loss
from harness.train.prepare import Prepared, prepare
from harness.train.update import Plan, Rates, old_logps, plan_updates, trained_rows, update
from tests.fakes.small_runs import run_spec

PUBLISHED = {"roster": "published", "overrides": {}}
STILL = Rates(policy=0.0, critic=0.0)


class CountingLogps:
    """The model's own `token_logps`, remembering how many rows it saw with and without gradient."""

    def __init__(self, inner: Any, spoil_call: int | None = None) -> None:
        self._inner, self._spoil = inner, spoil_call
        self.with_grad: list[int] = []
        self.without_grad: list[int] = []

    def __call__(self, policy: nn.Module, input_ids: Tensor, select: Tensor, **options: Any) -> Any:
        logp, entropy = self._inner(policy, input_ids, select, **options)
        (self.with_grad if torch.is_grad_enabled() else self.without_grad).append(len(input_ids))
        if self._spoil is not None and torch.is_grad_enabled() and len(self.with_grad) == self._spoil:
            logp = logp * float("nan")
        return logp, entropy


def assembly(arm: str = "grpo", prompts: int = 6, **changes: Any) -> Assembly:
    changes = {"recipe": {"prompts_per_step": prompts, "grad_clip": 1e9}} | changes
    spec = run_spec(arm, **changes)
    if "overrides" in changes:
        spec = spec.model_copy(update={"overrides": changes["overrides"]})
    return assemble(spec)


def prepared_batch(parts: Assembly) -> Prepared:
    t = parts.trainer
    gathered = t.gather(t.algorithm, t.recipe, Progress())
    return prepare(t.collate(gathered.groups), t.algorithm, t.nets, t.facts, (0, 0), ())


def gradient(parts: Assembly, ready: Prepared, micro_batch_tokens: int) -> list[Tensor]:
    """Of the second of two mini-batches, whose ratios are not 1; the weights stay as they are."""
    groups = ready.batch.group.tolist()
    first = tuple(r for r, g in enumerate(groups) if g == 0)
    plan = Plan(mini_batches=(first, tuple(r for r in range(len(groups)) if r not in first)), first_epoch=2)
    nets = replace(parts.trainer.nets, micro_batch_tokens=micro_batch_tokens)
    noise = torch.randn(ready.batch.mask.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    old = old_logps(ready, plan, parts.algorithm, nets) + noise
    for _ in update(ready, parts.algorithm, nets, parts.optimizers, STILL, old, plan, width=35):
        pass
    return [p.grad.clone() for p in nets.policy.parameters() if p.grad is not None]


def every_row_at_once(parts: Assembly, ready: Prepared) -> list[Tensor]:
    """The same gradient, restated: one loss over all rows of the mini-batch, those of zero advantage included."""
    nets = parts.trainer.nets
    rows = [r for r, g in enumerate(ready.batch.group.tolist()) if g != 0]
    noise = torch.randn(ready.batch.mask.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    nets.policy.zero_grad()
    [micro] = micro_batches(ready.rows, rows, 10**9)
    order = micro.rows.tolist()
    width = micro.mask.shape[1]
    logp, entropy = policy_logps(nets, nets.policy, micro, with_entropy="entropy" in parts.algorithm.needs)
    totals = batch_totals(ready.batch.mask[rows], ready.batch.group[rows], width=35)
    output = policy_loss(
        parts.algorithm,
        logp=logp,
        old_logp=logp.detach() + noise[order, :width],
        ref_logp=None if ready.ref_logp is None else ready.ref_logp[order, :width],
        entropy=entropy,
        advantages=ready.advantages.advantages[order, :width],
        mask=micro.mask,
        totals=micro_totals(totals, torch.tensor([rows.index(r) for r in order])),
    )
    output.loss.backward()
    return [p.grad.clone() for p in nets.policy.parameters() if p.grad is not None]


def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    assert len(a) == len(b)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("arm", "changes"),
    [("grpo", {}), ("gspo", {}), ("dapo", {}), ("grpo_process", {}), ("gfpo", {"overrides": {}}), ("rft", {})],
)
def test_the_gradient_is_exact_however_it_is_computed(arm: str, changes: dict[str, Any]) -> None:
    """Any split into micro-batches, and without the rows that cannot matter. `gfpo`: published, with penalties."""
    parts = assembly(arm, **changes)
    ready = prepared_batch(parts)
    whole = gradient(parts, ready, 10**9)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for tokens in (1, 150, 700):
        assert furthest(gradient(parts, ready, tokens), whole) < 1e-6
    assert furthest(every_row_at_once(parts, ready), whole) < 1e-6
    skipped = ready.batch.num_rows - len(trained_rows(ready, parts.algorithm, parts.trainer.nets))
    assert skipped > 0 if arm in ("grpo", "gspo", "rft") else True
    assert skipped == 0 if parts.algorithm.penalties else True


def test_one_update_per_batch_is_on_policy() -> None:
    parts = assembly(overrides={"penalties.kl": None, "updates.mini_batches": 1})
    logps = CountingLogps(parts.trainer.nets.token_logps)
    trainer = replace(parts.trainer, nets=replace(parts.trainer.nets, token_logps=logps))
    outcome = one_step(trainer, Progress(), 0.0)
    [trace] = outcome.traces
    assert trace.on_policy
    assert torch.equal(trace.logp, trace.old_logp)
    assert logps.without_grad == [], "no old-log-prob pass"
    row = step_row(outcome, parts)
    assert {k: v for k, v in row.items() if k.startswith(("clip/", "ratio/", "kl_old/")) and v is not None} == {}
    assert row["loss/total/first"] is not None
    assert row["budget/optimizer_steps"] == 1


def test_the_first_of_four_mini_batches_has_ratio_one() -> None:
    parts = assembly(prompts=8)
    logps = CountingLogps(parts.trainer.nets.token_logps)
    trainer = replace(parts.trainer, nets=replace(parts.trainer.nets, token_logps=logps))
    outcome = one_step(trainer, Progress(), 0.0)
    assert outcome.prepared is not None
    first, *later = outcome.traces
    assert len(later) == 3
    assert torch.equal(first.logp, first.old_logp)
    assert all(float((t.logp - t.old_logp)[t.mask].abs().max()) > 1e-4 for t in later)
    assert sum(logps.without_grad) == sum(len(t.mask) for t in later), "old pass over later, contributing rows only"
    assert outcome.old_logp is not None
    rows = [r for r in range(outcome.prepared.batch.num_rows) if outcome.prepared.contributing[r]]
    mask = outcome.prepared.batch.mask[rows]
    torch.testing.assert_close(
        outcome.old_logp[rows][mask], outcome.prepared.batch.behaviour_logp[rows][mask], atol=1e-4, rtol=0
    )
    row = step_row(outcome, parts)
    assert row["clip/tok_any/first"] == 0.0
    assert row["ratio/tok_max/first"] == 1.0
    assert row["ratio/tok_min/first"] == 1.0
    assert row["ratio/tok_max/last"] != 1.0
    assert outcome.progress.trained_tokens == row["budget/grad_tokens"]


def test_epochs_reuse_the_same_old_log_probs() -> None:
    parts = assembly(overrides={"penalties.kl": None, "updates.epochs": 2, "updates.mini_batches": 2})
    logps = CountingLogps(parts.trainer.nets.token_logps)
    trainer = replace(parts.trainer, nets=replace(parts.trainer.nets, token_logps=logps))
    outcome = one_step(trainer, Progress(), 0.0)
    assert len(outcome.traces) == 4
    first = outcome.traces[0]
    assert torch.equal(first.logp, first.old_logp)
    for a in outcome.traces[2:]:
        assert a.mask.any()
        torch.testing.assert_close(a.old_logp[a.mask], a.behaviour_logp[a.mask], atol=1e-4, rtol=0)
    assert outcome.progress.trained_tokens == sum(int(t.mask.sum()) for t in outcome.traces)


def test_plans_cover_every_row_once_per_epoch_and_keep_groups_whole() -> None:
    parts = assembly(prompts=7, overrides={"penalties.kl": None, "updates.epochs": 3})
    ready = prepared_batch(parts)
    plan = plan_updates(ready, parts.algorithm, (0, 0, 11))
    assert plan.first_epoch == 4
    groups = ready.batch.group.tolist()
    for epoch in range(3):
        minis = plan.mini_batches[4 * epoch : 4 * epoch + 4]
        assert sorted(r for mini in minis for r in mini) == list(range(ready.batch.num_rows))
        assert all(mini.count(r) == 1 for mini in minis for r in mini)
        places = [{groups[r] for r in mini} for mini in minis]
        assert sum(len(p) for p in places) == 7
    assert plan.mini_batches[:4] != plan.mini_batches[4:8]
    assert plan == plan_updates(ready, parts.algorithm, (0, 0, 11))
    few = plan_updates(prepared_batch(assembly(prompts=2)), parts.algorithm, (0,))
    assert few.first_epoch == 2, "never an empty mini-batch"


def test_critic_warm_up_trains_the_critic_alone() -> None:
    parts = assembly("ppo")
    policy, critic = parts.optimizers.policy, parts.optimizers.critic
    assert critic is not None
    before = [{k: v.clone() for k, v in o.tensors().items()} for o in (policy, critic)]
    warm = one_step(parts.trainer, Progress(), 0.0)
    assert warm.actor_frozen
    assert not warm.traces
    assert warm.progress.trained_tokens == warm.progress.optimizer_steps == 0
    assert warm.progress.sampled_tokens > 0
    assert policy.tensors().keys() == before[0].keys(), "no moments yet"
    assert all(torch.equal(v, before[0][k]) for k, v in policy.tensors().items())
    assert any(not torch.equal(critic.tensors()[k], v) for k, v in before[1].items())
    assert step_row(warm, parts)["budget/optimizer_steps"] == 0
    live = one_step(parts.trainer, Progress(step=5), 0.0)
    assert not live.actor_frozen
    assert len(live.traces) == 4
    assert any(not torch.equal(policy.tensors()[k], v) for k, v in before[0].items())
    assert all(t.critic is not None for t in live.traces)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    parts = assembly(prompts=8)
    logps = CountingLogps(parts.trainer.nets.token_logps, spoil_call=3)
    trainer = replace(parts.trainer, nets=replace(parts.trainer.nets, token_logps=logps))
    outcome = one_step(trainer, Progress(), 0.0)
    assert [t.nonfinite for t in outcome.traces] == [0, 0, 1, 0]
    row = step_row(outcome, parts)
    assert row["health/skipped_updates"] == 1
    assert row["budget/optimizer_steps"] == row["optimizer_steps_cum"] == 3
    assert all(bool(p.isfinite().all()) for p in parts.trainer.nets.policy.parameters())


class SpoiledCritic(nn.Module):
    """The critic itself, of which one forward pass with gradient gives an infinite value."""

    def __init__(self, inner: nn.Module, spoil_call: int) -> None:
        super().__init__()
        self._inner, self._spoil, self._calls = inner, spoil_call, 0

    def forward(self, input_ids: Tensor) -> Tensor:
        values = self._inner(input_ids)
        self._calls += torch.is_grad_enabled()
        spoiled = torch.is_grad_enabled() and self._calls == self._spoil
        return values * float("inf") if spoiled else values


@pytest.mark.parametrize("step", [0, 5])  # in the critic's warm-up, where the policy makes no step, and past it
def test_a_skipped_critic_step_has_a_counter_of_its_own(step: int) -> None:
    parts = assembly("ppo", prompts=8)
    critic = parts.trainer.nets.critic
    assert critic is not None
    nets = replace(parts.trainer.nets, critic=SpoiledCritic(critic, 2), micro_batch_tokens=10**9)
    outcome = one_step(replace(parts.trainer, nets=nets), Progress(step=step), 0.0)
    assert outcome.actor_frozen == (step == 0)
    row = step_row(outcome, parts)
    assert row["health/skipped_critic_updates"] == 1
    assert row["health/skipped_updates"] == row["health/nonfinite_loss"] == 0
    assert row["budget/optimizer_steps"] == (0 if step == 0 else 4)
    assert all(bool(p.isfinite().all()) for p in critic.parameters())
    assert step_row(one_step(parts.trainer, Progress(step=step), 0.0), parts)["health/skipped_critic_updates"] == 0
    without = assembly("grpo")
    plain = step_row(one_step(without.trainer, Progress(), 0.0), without)
    assert plain["health/skipped_critic_updates"] is None


class SpoiledLogps:
    """`token_logps` of which one number of each pass of one kind is not finite."""

    def __init__(self, inner: Any, where: str, value: float, reference: nn.Module | None) -> None:
        self._inner, self._where, self._value, self._reference = inner, where, value, reference

    def __call__(self, policy: nn.Module, input_ids: Tensor, select: Tensor, **options: Any) -> Any:
        logp, entropy = self._inner(policy, input_ids, select, **options)
        kind = "logp" if torch.is_grad_enabled() else "ref_logp" if policy is self._reference else "old_logp"
        if kind == self._where:  # of every row
            first = select.nonzero()[:, 0].diff(prepend=torch.full((1,), -1)) != 0
            logp = torch.where(first, self._value, logp)
        return logp, entropy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["logp", "old_logp", "ref_logp"])
@pytest.mark.parametrize("arm", ["grpo", "gspo"])
def test_log_probs_that_are_not_finite_skip_the_step(arm: str, where: str, value: float) -> None:
    """Even where a guard bounds the ratio, or a clamp hides the NaN from the gradient. `overrides={}`: with a KL."""
    parts = assembly(arm, prompts=8, overrides={"penalties.kl": {"coef": 0.01}, "updates.mini_batches": 2})
    nets = parts.trainer.nets
    spoiled = SpoiledLogps(nets.token_logps, where, value, nets.reference)
    before = {k: v.clone() for k, v in parts.optimizers.policy.tensors().items()}
    outcome = one_step(replace(parts.trainer, nets=replace(nets, token_logps=spoiled)), Progress(), 0.0)
    first = 0 if where == "old_logp" else 1  # its own forward pass is the first mini-batch's old policy
    assert [t.nonfinite for t in outcome.traces] == [first, 1]
    assert outcome.progress.optimizer_steps == 1 - first
    row = step_row(outcome, parts)
    assert row["loss/total/last"] is None
    assert row["health/skipped_updates"] == row["health/nonfinite_loss"] == 1 + first
    after = parts.optimizers.policy.tensors()
    assert all(bool(v.isfinite().all()) for v in after.values())
    if first:
        assert after.keys() == before.keys()
        assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("arm", ["grpo", "ppo", "gfpo_adaptive"])
def test_rewards_that_are_not_finite_leave_the_rest_of_the_batch(arm: str) -> None:
    parts = assembly(arm, prompts=8)
    inner, frozen = parts.trainer.collate, 5  # past the critic's warm-up

    def spoiled(groups: Any) -> Any:
        batch = inner(groups)
        reward = batch.reward.clone()
        reward[::5], reward[1::7] = float("nan"), float("inf")
        return replace(batch, reward=reward)

    outcome = one_step(replace(parts.trainer, collate=spoiled), Progress(step=frozen), 0.0)
    assert outcome.prepared is not None
    adv = outcome.prepared.advantages
    bad = ~outcome.prepared.batch.reward.isfinite()
    assert adv.advantages.isfinite().all()
    assert (adv.advantages[bad] == 0).all()
    assert outcome.traces
    assert not any(t.nonfinite for t in outcome.traces)
    assert torch.tensor(outcome.progress.history).isfinite().all()
    for optimizer in (parts.optimizers.policy, parts.optimizers.critic):
        assert optimizer is None or all(bool(v.isfinite().all()) for v in optimizer.tensors().values())
    assert all(v is None or v - v == 0 for v in step_row(outcome, parts).values() if not isinstance(v, str))


def test_a_batch_without_signal_changes_nothing() -> None:
    """All rewards equal: no row contributes, no forward pass is made, and the weights stay (no moments yet)."""
    parts = assembly(overrides={"penalties.kl": None}, task={"params": {"min_ops": 60, "max_ops": 60}})
    logps = CountingLogps(parts.trainer.nets.token_logps)
    trainer = replace(parts.trainer, nets=replace(parts.trainer.nets, token_logps=logps))
    before = {k: v.clone() for k, v in parts.optimizers.policy.tensors().items()}
    outcome = one_step(trainer, Progress(), 0.0)
    assert outcome.prepared is not None
    assert not bool(outcome.prepared.batch.correct.any()), "choose another seed: a lucky guess"
    assert logps.with_grad == logps.without_grad == []
    assert all(torch.equal(parts.optimizers.policy.tensors()[k], v) for k, v in before.items())
    row = step_row(outcome, parts)
    assert row["signal/zero_var_frac"] == 1.0
    assert outcome.progress.trained_tokens == 0


def test_no_admitted_group_is_a_step_without_update() -> None:
    parts = assembly("dapo", prompts=2, task={"params": {"min_ops": 60, "max_ops": 60}})
    outcome = one_step(parts.trainer, Progress(), 0.0)
    assert outcome.prepared is None, "choose another seed: a lucky guess"
    assert outcome.progress.step == 1
    assert outcome.progress.optimizer_steps == 0
    assert outcome.gathered.exhausted
    assert outcome.progress.prompts == 2 * 3
    assert outcome.progress.sampled_tokens > 0
    row = step_row(outcome, parts)
    assert row["reward/mean"] == 0.0
    assert row["loss/total/first"] is None


def test_reference_and_critic_exist_only_by_need() -> None:
    assert assembly("grpo").trainer.nets.reference is None
    assert assembly("grpo").trainer.nets.critic is None
    published = assembly("grpo", overrides={}).trainer.nets
    assert published.reference is not None
    assert not any(p.requires_grad for p in published.reference.parameters())
    assert assembly("ppo").trainer.nets.critic is not None


def test_kl_in_the_reward_uses_the_old_policy() -> None:
    """Published PPO: the reference equals the policy at first, so nothing is taken from the reward yet."""
    parts = assembly("ppo", overrides={})
    ready = prepared_batch(parts)
    assert ready.old_logp is not None
    mask = ready.batch.mask
    torch.testing.assert_close(ready.old_logp[mask], ready.batch.behaviour_logp[mask], atol=1e-4, rtol=0)
    assert ready.ref_logp is not None
    torch.testing.assert_close(ready.old_logp[mask], ready.ref_logp[mask])
