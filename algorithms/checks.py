"""Checks of an algorithm against a task: what cannot work is refused, what is a known trap is told."""

from __future__ import annotations

from collections.abc import Iterable

from algorithms.parts.admission import MeanBetween
from algorithms.parts.ratios import Sequence, SequenceValue
from harness.core.algorithm import Algorithm
from harness.core.errors import UsageError, near
from harness.core.ports import TaskInfo
from harness.core.resolve import scheduled
from harness.core.spec import Recipe, ScheduleEntry


def refusals_for(algorithm: Algorithm, info: TaskInfo) -> None:
    """Raises UsageError where the task lacks what a part needs."""
    if "credit" in algorithm.needs and not info.credit:
        raise UsageError(
            f"{algorithm.name} with advantage {algorithm.advantage.kind!r} on task {info.name}",
            "the task grades whole responses only, so there are no process rewards to learn from",
            "advantage=group, or a task that declares credit",
        )
    if "turns" in algorithm.needs and info.max_turns == 1:
        raise UsageError(
            f"{algorithm.name} with advantage {algorithm.advantage.kind!r} on task {info.name}",
            "a response is one turn there, so there are no rewards per turn",
            "advantage=group (for ppo: advantage.rewards=outcome), or a task of several turns such as guess",
        )
    if "verdict" in algorithm.needs and info.verdict_held_out:
        reading = ", ".join(f"{p.slot} {p.kind}" for p in algorithm.parts() if "verdict" in p.needs)
        raise UsageError(
            f"{algorithm.name} with {reading} on task {info.name}",
            "it reads whether a response is correct, and with a learned reward that is the held-out metric",
            "admission.metric=reward, another selection, or a reward that is not learned",
        )
    _components(algorithm, info)
    if "values_past_end" in algorithm.needs:
        raise UsageError(
            f"{algorithm.name} with advantage {algorithm.advantage.kind!r}",
            "it reads the critic's value after the last token, which this backbone does not compute: the preset exists "
            "to be checked against TRL's numbers (harness conform), and a run would be another algorithm",
            "ppo, or ppo_openrlhf",
        )


def refusals_along(algorithm: Algorithm, recipe: Recipe, schedule: Iterable[ScheduleEntry], info: TaskInfo) -> None:
    """The same for everything that the algorithm becomes in the course of a schedule."""
    entries = tuple(schedule)
    for at in sorted({0.0, *(entry.at for entry in entries)}):
        then, changed = scheduled(algorithm, recipe, entries, at)
        refusals_for(then, info)
        _pool(changed, info)


def _pool(recipe: Recipe, info: TaskInfo) -> None:
    """Raises UsageError for a pool that is none, or that the train split does not have."""
    size, whole = recipe.pool_size, info.sizes.get("train")
    if size is None:
        if recipe.pool:
            raise UsageError(
                f"recipe.pool={recipe.pool} without recipe.pool_size",
                "the whole train split is one pool, so there is no other",
                "recipe.pool_size, the number of prompts of a pool",
            )
        return
    if whole is not None and (recipe.pool + 1) * size > whole:
        raise UsageError(
            f"recipe.pool_size={size}, recipe.pool={recipe.pool} on task {info.name}",
            f"its train split has {whole} prompts, so pool {recipe.pool} would repeat those of an earlier one",
            f"recipe.pool_size of at most {whole // (recipe.pool + 1)}",
        )


def _components(algorithm: Algorithm, info: TaskInfo) -> None:
    if "components" in algorithm.needs and not info.components:
        raise UsageError(
            f"{algorithm.name} with advantage {algorithm.advantage.kind!r} on task {info.name}",
            "it is made of the named parts of a reward, and the task declares none",
            "advantage=group, or a task whose TaskInfo names its components",
        )
    wanted = [(part, name) for part in algorithm.parts() for name in part.component_names]
    for part, name in wanted:
        if name not in info.components:
            raise UsageError(
                f"{algorithm.name}: reward component {name!r} of {part.slot} {part.kind!r} on task {info.name}",
                f"the task's rewards have {', '.join(info.components) or 'no'} components",
                near(name, info.components) if info.components else "a task whose TaskInfo names its components",
            )


# Ranges in units of SD(log s) at which a sequence clip removes next to no rows, or next to all of them.
PLAUSIBLE = (0.1, 10.0)


def range_warning(algorithm: Algorithm, sd_log_s: float) -> str | None:
    """What a measured SD(log s) says about a clip range per sequence; None where it is plausible or does not apply.

    Never a verdict on the algorithm: a published range presumes the length of the paper's responses.
    """
    high = getattr(algorithm.surrogate, "high", None)
    if not isinstance(algorithm.ratio, Sequence | SequenceValue) or high is None or not sd_log_s > 0:
        return None
    share = high / sd_log_s
    if PLAUSIBLE[0] <= share <= PLAUSIBLE[1]:
        return None
    effect = "almost every response is clipped" if share < PLAUSIBLE[0] else "nothing is ever clipped"
    return (
        f"surrogate.high={high:g} is {share:.2g} times the measured SD(log s) of {sd_log_s:.2g}: {effect}. The range "
        "belongs to the length of the responses; use arm gspo_calibrated, or surrogate.kappa_low and kappa_high."
    )


def warnings_for(algorithm: Algorithm, info: TaskInfo) -> list[str]:
    """Known traps of this combination, one sentence of what happens and one of advice each."""
    low, high = info.reward_range
    found = _selection_warnings(algorithm, info)
    admission = algorithm.admission
    if isinstance(admission, MeanBetween) and (admission.low, admission.high) != (low, high):
        found.append(
            f"dynamic sampling admits mean rewards between {admission.low:g} and {admission.high:g}, but rewards of "
            f"{info.name} lie between {low:g} and {high:g}. Set admission.low={low:g} and admission.high={high:g}."
        )
    updates = algorithm.updates
    if algorithm.surrogate.clips and updates.mini_batches * updates.epochs == 1 and not algorithm.logp_noise.active:
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


def _selection_warnings(algorithm: Algorithm, info: TaskInfo) -> list[str]:
    found: list[str] = []
    if algorithm.selection.kind == "token_efficiency" and not info.graded:
        found.append(
            f"selection token_efficiency on {info.name}, whose reward takes two values: a group with k or more correct "
            "responses keeps only correct ones and has no gradient. Use a graded reward, or selection=shortest."
        )
    if algorithm.selection.kind == "token_efficiency" and info.reward_range[0] < 0:
        found.append(
            f"selection token_efficiency on {info.name}, whose reward can be negative: among wrong responses the "
            "longer ones rank higher. Use a reward that starts at 0."
        )
    if algorithm.advantage.group_relative and getattr(algorithm.selection, "k", 2) < 2:
        found.append(
            "the selection keeps one response per group, so every advantage is 0. Use selection.k of 2 or more."
        )
    return found
