"""Step outcomes -> the records of a run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.assemble import Assembly
from harness.core.errors import InfrastructureError
from harness.core.metrics import make_row
from harness.core.results import SampleRecord
from harness.core.routing_log import RoutingRecord
from harness.core.types import RolloutGroup, Trajectory
from harness.monitor.numbers import Row
from harness.monitor.routing import routing_metrics
from harness.monitor.sampled import count_sampled
from harness.monitor.step import step_metrics
from harness.train.loop import StepOutcome

READ_ROWS = 4  # training responses kept for reading per sampled step
READ_PROMPTS = 3  # validation prompts kept for reading per evaluation: always the first ones


def step_row(outcome: StepOutcome, parts: Assembly, routing: Row | None = None) -> dict[str, Any]:
    """One row of steps.jsonl; `routing`: numbers of `routing_of_step`."""
    p, gathered = outcome.progress, outcome.gathered
    new, kept = {id(g) for g in gathered.sampled}, {id(g) for g in gathered.groups}
    admitted = [g for g in gathered.groups if id(g) in new]
    carried = len(gathered.groups) - len(admitted)
    sampled = count_sampled(
        admitted,
        [g for g in gathered.sampled if id(g) not in kept],
        rounds=gathered.rounds,
        exhausted=gathered.exhausted,
        carried=carried if carried or parts.algorithm.admission.carries else None,
    )
    metrics: dict[str, float | None] = {}
    if outcome.prepared is not None:
        ready = outcome.prepared
        metrics = step_metrics(
            ready.batch,
            ready.advantages,
            ready.shaped,
            sampled,
            outcome.traces,
            ref_logp=ready.ref_logp,
            values=ready.values,
            critic_skipped=outcome.critic_skipped,
        )
    else:
        metrics = {"reward/mean": sampled.reward_mean, "signal/zero_var_frac": sampled.zero_var}
    if outcome.moved is not None:
        metrics["update/param_norm"] = outcome.moved[0]
        metrics["update/rel"] = outcome.moved[0] / max(outcome.moved[1], 1e-30)
    fields = {
        "step": p.step,
        "optimizer_steps_cum": p.optimizer_steps,
        "sampled_tokens_cum": p.sampled_tokens,
        "trained_tokens_cum": p.trained_tokens,
        "prompts_cum": p.prompts,
        "wallclock_s": p.wallclock_s,
        "budget_fraction": parts.spec.budget.fraction(p.sampled_tokens, p.step),
        "lr": outcome.lr,
    }
    return make_row(fields, metrics | (routing or {}) | _performance(outcome, sampled.tokens, parts))


def routing_of_step(outcome: StepOutcome, parts: Assembly) -> tuple[Row, RoutingRecord | None]:
    """Numbers and record of a step of a mixture of experts; nothing for a dense model."""
    ready = outcome.prepared
    if ready is None or ready.routing is None:
        return {}, None
    backend = parts.spec.backend
    precise = {backend.dtype, backend.engine.dtype or backend.dtype} == {"float32"}
    noise = parts.algorithm.logp_noise
    precise &= not (noise.active and noise.of == "behaviour")
    return routing_metrics(
        ready.routing, ready.batch, outcome.old_logp, outcome.probe, step=outcome.progress.step, full_precision=precise
    )


def _performance(outcome: StepOutcome, sampled_tokens: int, parts: Assembly) -> dict[str, float | None]:
    s = outcome.seconds
    whole = s["collect"] + s["prepare"] + s["logp"] + s["update"]
    return {
        "perf/t_gen": s["gen"],
        "perf/t_reward": s["reward"],
        "perf/t_logp": s["prepare"] + s["logp"],
        "perf/t_update": s["update"],
        "perf/t_step": whole,
        "perf/tok_per_s_gen": sampled_tokens / max(s["gen"], 1e-9),
        "perf/tok_per_s_e2e": sampled_tokens / max(whole, 1e-9),
        "perf/mem_peak": parts.peak_memory_mib() / 1024,
    }


def train_samples(outcome: StepOutcome, parts: Assembly) -> list[SampleRecord]:
    """The first responses of the rollout batch."""
    return _rows(outcome, parts, range(READ_ROWS))


def offending_samples(outcome: StepOutcome, parts: Assembly) -> list[SampleRecord]:
    """Responses of a suspicious step: those with the lowest task reward, the longest of them first."""
    if outcome.prepared is None:
        return []
    rows = outcome.prepared.batch.trajectories
    worst = sorted(range(len(rows)), key=lambda i: (_rank(rows[i].grade.score), -rows[i].num_tokens, i))
    return _rows(outcome, parts, worst[:READ_ROWS])


def _rank(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


def _rows(outcome: StepOutcome, parts: Assembly, numbers: Sequence[int]) -> list[SampleRecord]:
    if outcome.prepared is None:
        return []
    ready = outcome.prepared
    lengths = ready.batch.mask.sum(-1).clamp(min=1)
    means = (ready.advantages.advantages.sum(-1) / lengths).tolist()
    rows = ready.batch.trajectories
    return [_sample(outcome.progress.step, rows[i], parts, means[i], "train") for i in numbers if i < len(rows)]


def validation_samples(step: int, groups: Sequence[RolloutGroup], parts: Assembly) -> list[SampleRecord]:
    """The first response to each of the first validation prompts: fixed, not cherry-picked."""
    rows = [g.trajectories[0] for g in groups[:READ_PROMPTS]]
    return [_sample(step, t, parts, None, "validation") for t in rows]


def _sample(step: int, t: Trajectory, parts: Assembly, advantage: float | None, split: Any) -> SampleRecord:
    return SampleRecord(
        step=step,
        prompt_id=t.prompt.id,
        sample=t.sample,
        prompt=parts.codec.render(t.prompt.messages),
        response=t.text,
        tokens=t.num_tokens,
        reward=t.grade.score,
        correct=t.grade.correct,
        extracted=t.grade.extracted,
        why=t.grade.why,
        advantage=advantage,
        split=split,
    )


def rollout_file(folder: Path, outcome: StepOutcome) -> None:
    """rollouts/<step>.safetensors: the tensors of a rollout batch, for replays."""
    if outcome.prepared is None:
        return
    ready, batch = outcome.prepared, outcome.prepared.batch
    width = max(len(ids) for ids in batch.prompt_ids)
    prompts = [[-1] * (width - len(ids)) + list(ids) for ids in batch.prompt_ids]
    tensors = {
        "prompt_ids": torch.tensor(prompts, dtype=torch.int32),  # left-padded with -1
        "response_ids": batch.response_ids.to(torch.int32),
        "mask": batch.mask,
        "behaviour_logp": batch.behaviour_logp,
        "advantages": ready.advantages.advantages,
        "reward": batch.reward,
        "shaped_reward": ready.shaped,
        "correct": batch.correct,
        "truncated": batch.truncated,
        "group": batch.group.to(torch.int32),
        "kept": ready.kept,
        **{f"component.{name}": values for name, values in batch.components.items()},
    }
    tensors |= {f"selection.{name}": torch.tensor(x, dtype=torch.float64) for name, x in outcome.history.items()}
    optional = {"old_logp": outcome.old_logp, "ref_logp": ready.ref_logp, "values": ready.values}
    optional["policy_version"] = batch.policy_version
    tensors |= {name: value for name, value in optional.items() if value is not None}
    if ready.routing is not None:
        tensors["routes"] = ready.routing.old.experts
        if ready.routing.sampled is not None:
            tensors["sampler_routes"] = ready.routing.sampled.experts
    for name, steps in (("credit", batch.credit), ("turns", batch.turns)):
        if steps is not None:
            tensors |= {f"{name}.row": steps.row, f"{name}.end": steps.end, f"{name}.reward": steps.reward}
    target = folder / "rollouts" / f"{outcome.progress.step:08d}.safetensors"
    try:
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(".tmp")
        save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, temporary)
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise InfrastructureError(f"cannot write {target}: {error}; free space, then run the same command") from error
