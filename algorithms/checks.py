"""Checks of an algorithm against a task: what cannot work is refused, what is a known trap is told."""

from __future__ import annotations

from harness.core.algorithm import Algorithm
from harness.core.errors import UsageError
from harness.core.ports import TaskInfo


def refusals_for(algorithm: Algorithm, info: TaskInfo) -> None:
    """Raises UsageError where the task lacks what a part needs."""
    if "credit" in algorithm.needs and not info.credit:
        raise UsageError(
            f"{algorithm.name} with advantage {algorithm.advantage.kind!r} on task {info.name}",
            "the task grades whole responses only, so there are no process rewards to learn from",
            "advantage=group, or a task that declares credit",
        )


def warnings_for(algorithm: Algorithm, info: TaskInfo) -> list[str]:
    """Known traps of this combination, one sentence of what happens and one of advice each."""
    found: list[str] = []
    low, _ = info.reward_range
    if algorithm.selection.kind == "token_efficiency" and not info.graded:
        found.append(
            f"selection token_efficiency on {info.name}, whose reward takes two values: a group with k or more correct "
            "responses keeps only correct ones and has no gradient. Use a graded reward, or selection=shortest."
        )
    if algorithm.selection.kind == "token_efficiency" and low < 0:
        found.append(
            f"selection token_efficiency on {info.name}, whose reward can be negative: among wrong responses the "
            "longer ones rank higher. Use a reward that starts at 0."
        )
    updates = algorithm.updates
    if algorithm.surrogate.clips and updates.mini_batches * updates.epochs == 1:
        found.append(
            "one optimizer step per rollout batch: every ratio is 1, nothing is clipped, and the clipping algorithms "
            "coincide. Use updates.mini_batches=4."
        )
    if any(getattr(p, "estimator", None) == "k1" and not p.in_reward for p in algorithm.penalties):
        found.append(
            "KL estimator k1 in the loss: its expected gradient is 0. Use k2 or k3, or penalties.kl.place=reward."
        )
    if getattr(algorithm.admission, "metric", None) == "reward" and algorithm.rewards:
        found.append(
            "dynamic sampling on the reward: groups that are all correct but differ in reward are admitted. "
            "Use admission.metric=correct."
        )
    return found
