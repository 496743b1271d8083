"""Prints what an installed package requires here, apart from what is named after it, one requirement per line.

Usage: python scripts/requirements_of.py PACKAGE [LEFT_OUT ...]
For packages that are installed with --no-deps because one of their requirements is unwanted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements_of(package: str, left_out: set[str]) -> Iterator[str]:
    """The requirements that apply to this interpreter and platform, without extras and environment markers."""
    for line in requires(package) or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(requirement.name) not in left_out:
            requirement.marker = None
            yield str(requirement)


if __name__ == "__main__":
    print("\n".join(requirements_of(sys.argv[1], {canonicalize_name(name) for name in sys.argv[2:]})))
