"""Checks of the first rollout batch, sampled before the first update."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from harness.core.results import Finding
from harness.validity.limits import (
    CLONES_EXPECTED,
    DEAD_WARN,
    TRUNCATED_ALL,
    TRUNCATED_WARN,
    UNGRADED_INVALID,
    UNGRADED_WARN,
    UNREADABLE_WARN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBatch:
    """The first rollout batch, discarded groups included; shares in [0, 1]."""

    responses: int
    truncated: float  # share cut at the limit
    empty: float  # share that ended at once
    unreadable: float  # share without a readable answer
    dead: float | None  # share of groups of two and more without spread in reward; None: no such groups
    dead_wrong: float | None  # ... with no correct response
    dead_right: float | None  # ... with only correct responses
    clones: float | None  # share of groups whose siblings are all the same
    clones_expected: float | None  # the share that the responses' own probabilities explain
    spread: bool  # rewards differ within the batch
    ungraded: float = 0.0  # share whose grading failed
    fresh: bool = True  # the weights are the model's own; False: another run's algorithm made them


def truncation(found: FirstBatch) -> Finding:
    """A limit that cuts everything leaves nothing to learn; one that cuts much is part of what scores measure."""
    say = partial(
        Finding,
        check="truncation",
        measured=f"{found.truncated:.0%} of {found.responses} responses cut at the limit",
        values={"truncated": found.truncated, "responses": float(found.responses)},
    )
    if found.truncated >= TRUNCATED_ALL and not found.spread and found.fresh:
        return say(
            level="INVALID",
            limit=f"below {TRUNCATED_ALL:.0%}",
            why="Every response is cut off and all rewards are equal, so the limit leaves nothing to learn.",
            advice="Raise recipe.max_new_tokens, ask for shorter answers, or check that the end token is known.",
        )
    if found.truncated > TRUNCATED_WARN:
        return say(
            level="WARN",
            limit=f"{TRUNCATED_WARN:.0%}",
            why="So many responses are cut off before training that scores measure the limit as well.",
            advice="Raise recipe.max_new_tokens, or ask for shorter answers.",
        )
    return say(level="PASS", limit=f"{TRUNCATED_WARN:.0%}", why="Responses end by themselves.")


def dead_groups(found: FirstBatch, *, group_relative: bool) -> Finding:
    """Groups without spread teach a group-relative algorithm nothing. A hard task is no fault: WARN at most."""
    values = {"dead": found.dead, "dead_wrong": found.dead_wrong, "dead_right": found.dead_right}
    say = partial(Finding, check="dead-groups", limit=f"{DEAD_WARN:.0%}", values=values)
    if found.dead is None:
        measured = "no groups of two and more"
    else:
        wrong, right = found.dead_wrong or 0.0, found.dead_right or 0.0
        measured = f"{found.dead:.0%} of groups without spread, {wrong:.0%} all wrong, {right:.0%} all right"
    if not found.spread:
        why = "All rewards of the first batch are equal, so it teaches nothing."
    elif found.dead is None or not group_relative:
        return say(level="PASS", measured=measured, why="The algorithm learns from rewards outside a group as well.")
    elif found.dead <= DEAD_WARN:
        return say(level="PASS", measured=measured, why="Groups have better and worse responses.")
    else:
        why = "Next to no group has better and worse responses before training."
    solved = (found.dead_right or 0.0) > (found.dead_wrong or 0.0)
    advice = "A harder task." if solved else "An easier task, more siblings, or a model that sometimes solves it."
    return say(level="WARN", measured=measured, why=why, advice=advice)


def siblings(found: FirstBatch) -> Finding:
    """Siblings that are copies of one another although chance would make them differ: a seed used twice, or greedy."""
    say = partial(Finding, check="siblings", limit="as often as their probabilities say")
    if found.clones is None or found.clones_expected is None:
        return say(level="PASS", measured="one response per prompt", why="There are no siblings.")
    measured = f"{found.clones:.0%} of groups hold one response only, {found.clones_expected:.1%} by chance"
    values = {"clones": found.clones, "expected": found.clones_expected}
    if found.clones == 1.0 and found.clones_expected < CLONES_EXPECTED:
        return say(
            level="INVALID",
            measured=measured,
            values=values,
            why="All siblings of every prompt are the same response, which their probabilities rule out.",
            advice="Look for one seed per prompt instead of per sample, or for greedy decoding in the engine.",
        )
    return say(level="PASS", measured=measured, values=values, why="Siblings differ.")


def readable(found: FirstBatch) -> Finding:
    """Whether answers can be read out of the first responses: a fault of the format looks like a hard task."""
    say = partial(
        Finding,
        check="readable",
        measured=f"no answer in {found.unreadable:.0%} of responses, {found.empty:.0%} empty",
        values={"unreadable": found.unreadable, "empty": found.empty},
    )
    if found.empty == 1.0 and found.fresh:
        return say(
            level="INVALID",
            limit="below 100 % empty",
            why="Every response ends at once, so there is nothing to learn from.",
            advice="Look at the first prompt of `harness compare --dry-run`: it may already end the conversation.",
        )
    if found.unreadable > UNREADABLE_WARN:
        return say(
            level="WARN",
            limit=f"{UNREADABLE_WARN:.0%}",
            why="The grader reads no answer out of nearly all responses: perhaps the format, perhaps the model.",
            advice="Compare a response with what the task expects; `harness compare --dry-run` shows one.",
        )
    return say(level="PASS", limit=f"{UNREADABLE_WARN:.0%}", why="Answers can be read.")


def graded(found: FirstBatch) -> Finding:
    """Whether the grader came to a verdict; responses that it fails on are lost, and not at random."""
    say = partial(
        Finding,
        check="graded",
        measured=f"grading failed for {found.ungraded:.1%} of {found.responses} responses",
        values={"ungraded": found.ungraded},
    )
    if found.ungraded <= UNGRADED_WARN:
        return say(level="PASS", limit=f"{UNGRADED_WARN:.0%}", why="Responses get a verdict.")
    return say(
        level="INVALID" if found.ungraded > UNGRADED_INVALID else "WARN",
        limit=f"{UNGRADED_INVALID:.0%}" if found.ungraded > UNGRADED_INVALID else f"{UNGRADED_WARN:.0%}",
        why="The grader raises, takes too long or cannot read its gold answer, so these responses have no reward.",
        advice="`why` in samples.jsonl says what happened; correct the reward function or the answers.",
    )


def clip_range(said: str | None, sd_log_s: float) -> Finding:
    """A sequence clip range against the measured SD(log s). A warning at most: a published range is no fault."""
    say = partial(
        Finding,
        check="clip-range",
        measured=f"SD(log s) = {sd_log_s:.2g}",
        limit="0.1 to 10 SD",
        values={"sd_log_s": sd_log_s},
    )
    if said is None:
        return say(level="PASS", why="The clip range fits the drift, or is not one per sequence.")
    return say(level="WARN", why=said)
