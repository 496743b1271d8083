"""The metrics of one step: rollout and updates together, as they go into steps.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.parts import Advantages
from harness.core.shapes import Float, Tensor
from harness.core.types import RolloutBatch, UpdateTrace
from harness.monitor.numbers import Row
from harness.monitor.rollout import rollout_metrics
from harness.monitor.sampled import SampledCounts
from harness.monitor.update import update_metrics


def step_metrics(
    batch: RolloutBatch,
    advantages: Advantages,
    shaped_reward: Float[Tensor, "B"],
    sampled: SampledCounts,
    traces: Sequence[UpdateTrace],
    *,
    old_logp: Float[Tensor, "B T"] | None = None,
    ref_logp: Float[Tensor, "B T"] | None = None,
    values: Float[Tensor, "B T"] | None = None,
    critic_skipped: int | None = None,
) -> Row:
    """Everything that was measured, for `harness.core.metrics.make_row`, which fills the rest with null.

    `critic_skipped` counts all steps of the critic, those of its warm-up too, which leave no trace.
    Mismatch comes from the old-log-prob pass over all rows where there was one, else from the updates.
    """
    rollout = rollout_metrics(
        batch, advantages, shaped_reward, sampled, old_logp=old_logp, ref_logp=ref_logp, values=values
    )
    counted: Row = {"health/skipped_critic_updates": critic_skipped}
    return update_metrics(traces, mismatch="mismatch/n" not in rollout) | rollout | counted
