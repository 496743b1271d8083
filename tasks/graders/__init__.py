"""Pure functions that read an answer out of a text and compare it with a stored one."""

from __future__ import annotations

from tasks.graders.extract import boxed, last_number, tagged
from tasks.graders.numeric import as_number, numerically_equal
from tasks.graders.text import exactly_equal, normalise

__all__ = ["as_number", "boxed", "exactly_equal", "last_number", "normalise", "numerically_equal", "tagged"]
