"""Checks of task parameters; a mistake is reported before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.errors import UsageError, near


def check_known(task: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses parameters the task does not have."""
    known = sorted(known)
    for name in given:
        if name not in known:
            raise UsageError(
                f"task {task}: parameter {name}={given[name]!r}",
                "no such parameter",
                f"{near(name, known)} (valid: {', '.join(known)})",
            )


def check_choice(task: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise UsageError(f"task {task}: {name}={value!r}", "not a valid choice", f"one of: {', '.join(choices)}")


def check_int(task: str, name: str, value: object, low: int, high: int) -> None:
    """Refuses anything but an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"task {task}: {name}={value!r}", "out of range", f"an integer from {low} to {high}")


def check_bool(task: str, name: str, value: object) -> None:
    """Refuses anything but true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"task {task}: {name}={value!r}", "not a truth value", "true or false")


def check_turn_reward(task: str, value: object, turns: int) -> None:
    """Refuses a reward per turn with which play alone could be worth as much as success."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value * turns < 1:
        raise UsageError(
            f"task {task}: turn_reward={value!r} with turns={turns}",
            "the turns alone must earn less than 1, the score of success",
            f"from 0 to below {1 / turns:g}",
        )
