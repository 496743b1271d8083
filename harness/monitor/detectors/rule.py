"""What a detector is: a frozen value with a flag condition, a clear condition, and how it confirms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.core.results import Severity
from harness.monitor.machine import Confirmation
from harness.monitor.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(ABC):
    """One way to notice one type of event. Raise `rule_version` whenever a condition or a number changes."""

    type: ClassVar[str]
    rule_id: ClassVar[str]
    rule_version: ClassVar[int] = 1
    watches: ClassVar[tuple[str, ...]]  # columns it reads; the first one that is known is the evidence
    worst_is_low: ClassVar[frozenset[str]] = frozenset()  # of these, columns whose worst value is the lowest
    confirmation: ClassVar[Confirmation]
    severity: ClassVar[Severity] = "DEGRADED"  # at confirmation
    source: ClassVar[Literal["steps", "scores"]] = "steps"

    @abstractmethod
    def flag(self, view: View) -> bool | None:
        """Whether this step looks like the event; None where nothing is known."""

    @abstractmethod
    def clear(self, view: View) -> bool | None:
        """Whether this step looks as if the event were over; None where nothing is known."""

    def evidence(self, view: View) -> str:
        """The column whose course shows the event."""
        return next((key for key in self.watches if view.now(key) is not None), self.watches[0])

    def reference(self, view: View, key: str) -> float | None:
        """What the evidence is compared with."""
        return view.baseline(key)

    def detail(self, view: View) -> str | None:
        """A word on which kind of this event it is."""
        return None

    def severity_of(self, view: View) -> Severity:
        """Severity at confirmation."""
        return self.severity
