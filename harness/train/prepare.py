"""Rollout batch -> advantages: shaping, selection, critic values, reference log-probs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from harness.core.algorithm import Algorithm, replay_mode
from harness.core.errors import UsageError
from harness.core.parts import AdvantageInput, Advantages, ExclusionView, RowView
from harness.core.randomness import counter, uniforms
from harness.core.shapes import Bool, Float, Tensor
from harness.core.types import RolloutBatch
from harness.train.networks import Networks, Rows, as_rows, no_grad_logps, no_grad_values
from harness.train.objective import loss_mask, next_penalty_weight, token_rewards
from harness.train.routes import Routing, routing_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A rollout batch that is ready for its updates."""

    batch: RolloutBatch
    rows: Rows
    shaped: Float[Tensor, "B"]  # row reward after shaping
    kept: Bool[Tensor, "B"]  # by the selection
    mask: Bool[Tensor, "B T"]  # of the loss: the batch's, without excluded rows
    counted: Bool[Tensor, "B"]  # rows that count in B
    advantages: Advantages
    values: Float[Tensor, "B T"] | None
    ref_logp: Float[Tensor, "B T"] | None
    old_logp: Float[Tensor, "B T"] | None  # where the advantages already needed it
    noise: Float[Tensor, "B T"] | None  # injected into what the ratio divides by
    history: tuple[float, ...]  # the selector's state afterwards
    penalty_weight: float | None  # the adaptive controller's, for the next batch
    routing: Routing | None = None  # of a mixture of experts

    @property
    def contributing(self) -> Bool[Tensor, "B"]:
        """Rows whose policy gradient is not exactly 0."""
        return ((self.advantages.advantages != 0) & self.mask).any(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What shaping needs to know about task and limits."""

    reward_range: tuple[float, float]
    limit: int  # tokens of a response, all its turns together
    max_turns: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a replay knows from the time of sampling."""

    old_logp: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None  # the critic's


def prepare(
    batch: RolloutBatch,
    algorithm: Algorithm,
    nets: Networks,
    facts: TaskFacts,
    key: tuple[int, ...],
    history: tuple[float, ...],
    *,
    recorded: Recorded | None = None,
) -> Prepared:
    """Everything that is constant during the updates of this batch; what was `recorded` is not computed again."""
    known = recorded or Recorded()
    batch = replace(batch, behaviour_logp=algorithm.logp_noise.reported(batch.behaviour_logp, batch.mask, key))
    view = _view(batch, facts, key)
    for part in algorithm.rewards:
        view = replace(view, reward=part(view))
    selected = algorithm.selection(view, history)
    mask, counted = loss_mask(algorithm, batch.mask, ExclusionView(kept=selected.kept, truncated=batch.truncated))
    rows = as_rows(batch if mask is batch.mask else replace(batch, mask=mask), nets.pad_id)
    routing = routing_for(batch, rows, algorithm, nets)
    everything = range(batch.num_rows)
    needs_old = any(p.in_reward for p in algorithm.penalties)
    old = known.old_logp
    if old is None and needs_old:
        old = _old_logps(batch, algorithm, nets, rows, routing)
    ref = no_grad_logps(nets, nets.reference, rows, everything) if nets.reference is not None else None
    values = known.values
    if values is None and nets.critic is not None:
        values = no_grad_values(nets, nets.critic, rows)
    advantages = algorithm.advantage(
        AdvantageInput(
            reward=view.reward,
            mask=mask,
            group=batch.group,
            num_groups=batch.num_groups,
            kept=selected.kept,
            token_reward=token_rewards(algorithm, old, ref, mask) if old is not None else None,
            values=values,
            credit=batch.credit,
            correct=batch.correct,
            components=batch.components,
            turns=batch.turns,
        )
    )
    return Prepared(
        batch=batch,
        rows=rows,
        shaped=view.reward,
        kept=selected.kept,
        mask=mask,
        counted=counted,
        advantages=advantages,
        values=values,
        ref_logp=ref,
        old_logp=old,
        noise=algorithm.logp_noise.of_old(batch.mask, key),
        history=selected.history,
        penalty_weight=None if old is None else next_penalty_weight(algorithm, old, ref, mask),
        routing=routing,
    )


def _old_logps(
    batch: RolloutBatch, algorithm: Algorithm, nets: Networks, rows: Rows, routing: Routing | None
) -> Float[Tensor, "B T"]:
    """Of all rows, before any update."""
    if algorithm.old_logp == "rollout":
        return batch.behaviour_logp
    follow = None if routing is None else routing.recording()
    return no_grad_logps(nets, nets.policy, rows, range(batch.num_rows), follow)


def routing_for(batch: RolloutBatch, rows: Rows, algorithm: Algorithm, nets: Networks) -> Routing | None:
    """The routes of a batch under the algorithm's replay; None for a dense model, UsageError where it cannot be."""
    mode = replay_mode(algorithm, moe=nets.routers is not None)
    if nets.routers is None:
        if mode != "off":
            raise UsageError(
                f"routing_replay={mode} on a dense model",
                "no router chooses anything that could be replayed",
                "routing_replay=off, or a mixture of experts (e.g. --model tiny-moe)",
            )
        return None
    return routing_of(
        nets.routers,
        mode,
        prompt_ids=batch.prompt_ids,
        mask=batch.mask,
        lengths=rows.lengths,
        width=rows.input_ids.shape[1],
        sampled=[t.routes for t in batch.trajectories],
    )


def _view(batch: RolloutBatch, facts: TaskFacts, key: tuple[int, ...]) -> RowView:
    keys = [(*key, counter(t.prompt.id), t.sample, -1) for t in batch.trajectories]
    return RowView(
        reward=batch.reward,
        correct=batch.correct,
        length=batch.mask.sum(-1),
        group=batch.group,
        num_groups=batch.num_groups,
        limit=facts.limit,
        reward_range=facts.reward_range,
        uniform=torch.from_numpy(uniforms(keys, 1)[:, 0]).to(batch.reward),
        components=batch.components,
    )
