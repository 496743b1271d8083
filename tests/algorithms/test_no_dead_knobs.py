"""Every hyper-parameter of every algorithm and part changes what training sees, or is listed with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from algorithms.parts.selection import Adaptive
from harness.core.algorithm import MANY, SLOTS, Algorithm, leaves, override
from harness.core.errors import UsageError
from harness.core.parts import AdvantageInput, Advantages, ExclusionView, GroupView, Part, RowView
from harness.core.registry import algorithm, algorithm_names, part_kinds
from harness.rollout.refill import Refill, RefillExhausted
from harness.train.objective import (
    batch_totals,
    loss_mask,
    micro_totals,
    next_penalty_weight,
    policy_loss,
    ratio_base,
    rollout_weights,
    token_rewards,
    value_loss,
)
from harness.train.update import plan_updates
from tests.algorithms.batches import Batch, make_batch, turns_of

# (a mark of the record, path) -> why it cannot change anything there; what is refused needs no entry
INERT = {
    ("likelihood", "ratio"): "maximum likelihood has no ratio",
    ("likelihood", "ratio.guard"): "maximum likelihood has no ratio",
    ("fault_inf", "penalties.fault_inf.aggregate"): "infinite under every mean",
    ("likelihood", "old_logp"): "maximum likelihood has no ratio",
    ("correct", "rewards"): "rejection sampling reads the task's verdict, not the reward",
    ("std=none", "advantage.eps"): "nothing is divided by",
    ("std=none", "advantage.scope"): "nothing is divided by",
    ("epochs=0", "updates.mini_batches"): "it never updates",
    ("k1", "penalties.kl.clamp"): "verl's clamp guards k3 only",
    ("k2", "penalties.kl.clamp"): "verl's clamp guards k3 only",
    ("likelihood", "logp_noise.sd"): "maximum likelihood has no ratio",
    ("likelihood", "logp_noise.bias"): "maximum likelihood has no ratio",
    ("noise=none", "logp_noise.of"): "there is none to put anywhere",
}
TOGETHER: dict[str, list[dict[str, Any]]] = {
    "penalties.kl.target": [{"penalties.kl": {"target": 0.1, "horizon": 100.0, "place": "reward"}}],
    "selection.by": [{"selection.by": "b"}],
    "selection.tdigest": [{"selection.tdigest": 10}],
    "penalties.kl.horizon": [{"penalties.kl": {"target": 0.1, "horizon": 50.0, "place": "reward"}}],
}
ROWS = torch.arange(25)


@cache
def crafted() -> Batch:
    """Six groups of four and a lone row; one row far above, single tokens far off both ways."""
    batch = make_batch(5, groups=7, siblings=4, width=6)
    order = torch.argsort(batch.group, stable=True)[:25]
    rows = batch.rows(order)
    mask = rows.mask.clone()
    mask[:, 0] = True
    logp = torch.where(mask, rows.logp.nan_to_num(), 0.0)
    old, ref = rows.old_logp.clone(), rows.ref_logp.clone()
    for x in (old, ref):
        x[~mask] = 0.0
        x[:, 0] = logp[:, 0] - 0.05
    for i, gap in ((0, 30.0), (1, -30.0), (2, 3.0), (3, -3.0), (5, 22.0), (6, 2.5), (8, -0.3), (24, 0.4)):
        old[i, 0] = logp[i, 0] - gap
    for i, gap in ((4, 30.0), (7, -30.0), (9, 22.0), (10, -3.5), (24, 3.5)):
        ref[i, 0] = logp[i, 0] - gap
    mask[11], mask[11, 0] = False, True
    old[11, 0] = logp[11, 0] - 14.0
    mask[12], mask[12, 0] = False, True
    old[12, 0] = logp[12, 0] - 16.0
    mask[13] = False
    for i in range(14, 24):
        old[i, 0] = logp[i, 0] + (0.4 if i % 2 else 1.1)
    reward = torch.tensor([0, 0.2, 1, 0.6, 1, 0, 0.3, 1, 0.7, 0.8, 0.9, 1.0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0.75])
    return replace(
        rows,
        logp=logp,
        old_logp=old,
        ref_logp=ref,
        entropy=torch.where(mask, rows.entropy.nan_to_num(), 0.0),
        values=torch.where(mask, rows.values.nan_to_num(), 0.0),
        mask=mask,
        reward=reward.double(),
        correct=reward > 0.5,
    )


def components(batch: Batch) -> dict[str, Tensor]:
    noise = batch.uniform.clone()
    noise[3] = float("nan")
    return {"a": batch.reward, "b": noise}


def sampling(a: Algorithm) -> list[Any]:
    """Groups admitted, when to generate again, how many prompts and responses, and the order of the updates."""
    batch = crafted()
    view = GroupView(reward=batch.reward, correct=batch.correct, group=batch.group, num_groups=batch.num_groups)
    lower = replace(view, reward=view.reward - 0.5)
    plan = Refill.of(a.admission, 4)

    def decision(admitted: int, rounds: int) -> str:
        try:
            return plan.decide(admitted, rounds)
        except RefillExhausted:
            return "raised"

    decisions = [decision(n, r) for n in (0, 3) for r in range(1, 14)]
    updates = plan_updates(SimpleNamespace(batch=batch), a, (0, 1))  # type: ignore[arg-type]
    size = (a.siblings, a.prompts_factor * 8)
    return [a.admission(view), a.admission(lower), decisions, plan.size(1), plan.split(range(6)), size, updates]


def shaped(a: Algorithm) -> tuple[RowView, Tensor, Tensor, Tensor, Any]:
    batch = crafted()
    view = RowView(
        reward=batch.reward,
        correct=batch.correct,
        length=batch.mask.sum(1),
        group=batch.group,
        num_groups=batch.num_groups,
        limit=4,
        reward_range=(0.0, 1.0),
        uniform=batch.uniform,
        components=components(batch),
    )
    for part in a.rewards:
        view = replace(view, reward=part(view))
    seen = [i / 70 for i in range(70)]
    history = a.selection.follow((), seen)[1] if isinstance(a.selection, Adaptive) else ()
    selected = a.selection(view, history)
    truncated = torch.arange(25) % 5 == 2
    mask, counted = loss_mask(a, batch.mask, ExclusionView(kept=selected.kept, truncated=truncated))
    return view, selected.kept, mask, counted, selected.history


def training(a: Algorithm) -> list[Any]:
    batch = crafted()
    view, kept, mask, counted, history = shaped(a)
    given = AdvantageInput(
        reward=view.reward,
        mask=mask,
        group=batch.group,
        num_groups=batch.num_groups,
        kept=kept,
        correct=batch.correct,
        token_reward=token_rewards(a, batch.old_logp, batch.ref_logp, mask),
        values=batch.values,
        credit=batch.credit,
        components=components(batch),
        turns=turns_of(batch),
    )
    found = a.advantage(given)
    plan = a.advantage.critic
    critic = None if plan is None else [plan.warmup_steps, critic_loss(a, found, mask)]
    weight = next_penalty_weight(a, batch.old_logp, batch.ref_logp, mask)
    return [kept, history, mask, found.advantages, found.returns, critic, weight, losses(a, found, mask, counted)]


def critic_loss(a: Algorithm, found: Advantages, mask: Tensor) -> Tensor:
    batch = crafted()
    assert a.advantage.critic is not None
    assert found.returns is not None
    return value_loss(
        vpred=batch.values * 2.5 + 0.3,
        values=batch.values,
        returns=found.returns,
        mask=mask,
        totals=batch_totals(mask, batch.group),
        clip=a.advantage.critic.value_clip,
        aggregate=a.aggregate,
    ).loss


def losses(a: Algorithm, found: Advantages, mask: Tensor, counted: Tensor) -> list[Tensor]:
    """Loss and gradient of the batch in two micro-batches."""
    batch = crafted()
    if a.surrogate.needs_calibration:
        a = a.model_copy(update={"surrogate": a.surrogate.calibrated(0.07)})
    noise = a.logp_noise.of_old(batch.mask, (0, 1))
    reported = a.logp_noise.reported(batch.old_logp - batch.uniform[:, None] * 3, batch.mask, (0, 1))
    totals = replace(batch_totals(mask, batch.group, 6.0, int(counted.sum())), micro_batches=2.0)
    logp = batch.logp.clone().requires_grad_()
    total = logp.sum() * 0.0
    for rows in (ROWS[:9], ROWS[9:]):
        old, behaviour = batch.old_logp[rows], reported[rows]
        base = ratio_base(a, old, behaviour)
        total = (
            total
            + policy_loss(
                a,
                logp=logp[rows],
                old_logp=base if noise is None else base + noise[rows],
                ref_logp=batch.ref_logp[rows],
                entropy=batch.entropy[rows],
                advantages=found.advantages[rows],
                mask=mask[rows],
                totals=micro_totals(totals, rows),
                weights=rollout_weights(a, old, behaviour, mask[rows]),
            ).loss
        )
    (grad,) = torch.autograd.grad(total, logp)
    return [total.detach(), grad]


def flat(x: Any) -> Iterator[Any]:
    if isinstance(x, Tensor):
        yield from x.double().nan_to_num().flatten().tolist()
    elif isinstance(x, list | tuple):
        for item in x:
            yield from flat(item)
    else:
        yield x


def outcome(a: Algorithm) -> list[Any]:
    return list(flat([sampling(a), training(a)]))


def other_values(a: Algorithm, path: str, value: Any) -> Iterator[dict[str, Any]]:
    """Overrides that change this leaf and little else."""
    yield from TOGETHER.get(path, [])
    head, _, name = path.rpartition(".")
    slot = path.split(".")[0]
    if path in MANY:
        yield from ({f"{path}.{k}": None} for k in value)
        yield from ({f"{path}.{k}": {}} for k in part_kinds(path) if k not in value)
        return
    if path in SLOTS:
        yield from ({path: k} for k in part_kinds(path) if k != value)
        return
    if isinstance(value, bool):
        yield {path: not value}
        return
    if path == "old_logp":
        yield {path: "rollout"}
        return
    if name in SLOTS:  # a part inside a part
        yield from ({path: k} for k in (*part_kinds(name), None) if k != value)
        return
    if slot in SLOTS:
        annotation = type(part_at(a, head)).model_fields[name].annotation
        yield from ({path: v} for v in options(annotation) if v != value)
        if name == "weights":
            yield {path: {"a": 1.0, "b": 3.0}}
    numbers: tuple[Any, ...] = (1, 2, 3, 4, 70, 1000, 0) if isinstance(value, int) else ()
    yield from ({path: v} for v in (*numbers, 0.5, 0.02, 0.9, 1.5, 3.0, 0.0, 2, -1.0) if v != value)


def part_at(a: Algorithm, path: str) -> Part:
    """The part whose fields are the leaves below a path."""
    slot, *inside = path.split(".")
    found: Part
    if slot in MANY:
        [found] = [p for p in getattr(a, slot) if p.kind == inside[0]]
        inside = inside[1:]
    else:
        found = getattr(a, slot)
    for name in inside:
        found = getattr(found, name)
    return found


def options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [v for part in get_args(annotation) for v in options(part)]


def marks(a: Algorithm) -> set[str]:
    estimators = {p.estimator for p in a.penalties if hasattr(p, "estimator")}
    values = {f"std={getattr(a.advantage, 'std', None)}", f"epochs={a.updates.epochs}"}
    values |= set() if a.logp_noise.active else {"noise=none"}
    return {*(p.kind for p in a.parts()), *estimators, *values}


def dead(a: Algorithm) -> list[str]:
    """Leaves of a record that accept other values and change nothing, whatever they are set to."""
    before, found = outcome(a), []
    for path, value in leaves(a).items():
        if any((mark, path) in INERT for mark in marks(a)):
            continue
        accepted = False
        for changes in other_values(a, path, value):
            answer = differs(a, changes, before)
            accepted = accepted or answer is not None
            if answer:
                break
        else:
            if accepted:
                found.append(path)
    return found


def differs(a: Algorithm, changes: dict[str, Any], before: list[Any]) -> bool | None:
    """None where the change is refused."""
    try:
        after = outcome(override(a, changes))
    except UsageError:
        return None
    return len(after) != len(before) or any(x != y for x, y in zip(after, before, strict=True))


@pytest.mark.filterwarnings("ignore:.*k = G")
@pytest.mark.parametrize("name", algorithm_names())
def test_no_dead_knob_in_an_algorithm(name: str) -> None:
    assert not dead(algorithm(name))


HOSTS = {"advantage": {"penalties": []}, "ratio": {}, "exclusions": {"selection": "shortest", "selection.k": 2}}
SMALLER: dict[str, Any] = {
    "adaptive": {"kind": "adaptive", "k_very_hard": 1, "k_hard": 2, "k_medium": 3, "k_easy": 4},  # groups of 4
    "attribute": {"kind": "attribute", "k": 2},
}
EVERY_PART = [(slot, kind) for slot in SLOTS for kind in part_kinds(slot)]


@pytest.mark.filterwarnings("ignore:.*k = G")
@pytest.mark.parametrize(("slot", "kind"), EVERY_PART)
def test_no_dead_knob_in_a_part(slot: str, kind: str) -> None:
    base = override(algorithm("grpo"), HOSTS.get(slot, {}))
    changes: dict[str, Any] = {f"{slot}.{kind}": {}} if slot in MANY else {slot: SMALLER.get(kind, kind)}
    standing = getattr(base, slot)
    there = kind in [p.kind for p in standing] if slot in MANY else standing.kind == kind
    record = base if there else override(base, changes)
    found = [path for path in dead(record) if path.startswith(f"{slot}.{kind}." if slot in MANY else f"{slot}.")]
    assert not found


def test_a_dead_knob_is_seen() -> None:
    frozen = algorithm("rft")
    assert ("likelihood", "ratio.guard") in INERT
    assert not differs(frozen, {"ratio.guard": 0.5}, outcome(frozen))
