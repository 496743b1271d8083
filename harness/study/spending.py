"""What runs may cost together."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.study.compare import PlannedRun
from harness.study.evidence import cost_so_far


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond these nothing new is begun."""

    tokens: int | None = None  # sampled
    seconds: float | None = None  # of the runs, one after the other

    def check(self) -> None:
        """Refuses limits under which nothing could be run."""
        for name, value in (("--budget-tokens", self.tokens), ("--budget-seconds", self.seconds)):
            if value is not None and value <= 0:
                raise UsageError(f"{name} {value:g}", "nothing could be run", "more than 0, or leave it out")

    def exceeded(self, cost: Mapping[str, float]) -> str | None:
        """The limit that `sampled_tokens` or `seconds` have reached, in words."""
        for name, limit, spent in (
            ("--budget-tokens", self.tokens, cost["sampled_tokens"]),
            ("--budget-seconds", self.seconds, cost["seconds"]),
        ):
            if limit is not None and spent >= limit:
                return f"{name} {limit:,.0f} is spent ({spent:,.0f})"
        return None


class Purse:
    """Interrupts a study, resumable, once its runs have cost what they may; looked at when a run has ended."""

    def __init__(self, limits: Limits, runs: Sequence[PlannedRun]) -> None:
        self._limits, self._runs, self._ended = limits, runs, -1

    def look(self, states: Mapping[str, RunState]) -> None:
        """Raises KeyboardInterrupt where a limit is reached and there is something left to run."""
        ended = sum(r.done for r in self._runs) + sum(s == "done" for s in states.values())
        if ended in (self._ended, len(self._runs)) or self._limits == Limits():
            return
        self._ended = ended
        why = self._limits.exceeded(cost_so_far([r.folder for r in self._runs if r.folder.exists()]))
        if why is not None:
            print(f"\n{why} with {ended} of {len(self._runs)} runs done: a larger one goes on", file=sys.stderr)
            raise KeyboardInterrupt
