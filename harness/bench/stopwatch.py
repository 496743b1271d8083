"""Seconds by phase of a step, measured around the calls that make it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Every second counts once: time in an inner phase is taken off the outer one."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._inner: list[float] = []  # seconds spent in inner phases, per open phase

    def reset(self) -> None:
        """Forgets all phases; none may be open."""
        assert not self._inner, "a phase is open"
        self.seconds = {}

    def enter(self) -> float:
        """Opens a phase; returns when."""
        self._inner.append(0.0)
        return self._clock()

    def leave(self, key: str, since: float) -> None:
        """Closes the newest phase under its name."""
        whole = self._clock() - since
        own = whole - self._inner.pop()
        if self._inner:
            self._inner[-1] += whole
        self.seconds[key] = self.seconds.get(key, 0.0) + own

    def around(self, key: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time added to `key`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            since = self.enter()
            try:
                return call(*args, **kwargs)
            finally:
                self.leave(key, since)

        return run
