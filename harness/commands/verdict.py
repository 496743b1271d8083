"""What a finished report means for the exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from harness.core.errors import InvalidComparison


def refused(report: Mapping[str, Any]) -> int:
    """Says why nothing may be ranked and returns 3; 0 where the comparison is valid."""
    reason = report["validity"]["reason"]
    if reason is None:
        return 0
    print(f"error: the comparison is INVALID, nothing is ranked: {reason}", file=sys.stderr)
    return InvalidComparison.exit_code
