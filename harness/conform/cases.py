"""Golden cases: one `.npz` per case, `in__*` and `out__*` arrays and a JSON string `meta`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from harness.core.errors import UsageError
from harness.core.shapes import Bool, Tensor

BUNDLED = Path(__file__).parents[2] / "tests" / "golden" / "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One `.npz`."""

    name: str
    suite: str
    hyper: Mapping[str, Any]
    tol: float
    tol_metrics: float
    given: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        """True where a token is trained."""
        return self.given["mask"].bool()


def load(path: Path) -> Case:
    """Reads one case; a file of another schema is a UsageError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            arrays = {k: torch.from_numpy(np.array(data[k])) for k in data.files if k != "meta"}
        return Case(
            name=path.stem,
            suite=meta["suite"],
            hyper=meta["hyper"],
            tol=float(meta["tol"]),
            tol_metrics=float(meta.get("tol_metrics", meta["tol"])),
            given={k.removeprefix("in__"): v for k, v in arrays.items() if k.startswith("in__")},
            expected={k.removeprefix("out__"): v for k, v in arrays.items() if k.startswith("out__")},
        )
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise UsageError(
            f"{path}: {error}", "it is no golden case: an .npz with meta, in__* and out__*", "the files of tests/golden"
        ) from None


def case_files(folder: Path | None) -> list[Path]:
    """The cases of a folder, by default those of the checkout; none is a UsageError."""
    if folder is None and not BUNDLED.is_dir():
        raise UsageError(
            "conform without a folder",
            "the harness is installed without a checkout, and the installed package does not hold the golden cases",
            "harness conform DIR with a folder of golden cases, such as tests/golden/open of a checkout",
        )
    where = BUNDLED if folder is None else folder
    if not where.is_dir():
        raise UsageError(f"conform {where}", "there is no such folder", "a folder of golden cases (.npz files)")
    found = sorted(where.glob("*.npz"))
    if not found:
        raise UsageError(
            f"conform {where}",
            "there is no .npz file in it",
            "a folder of golden cases; a checkout has tests/golden/open",
        )
    return found


def error_of(actual: Tensor, expected: Tensor) -> float:
    """max |a - b| / max(1, |b|); infinite where shapes differ or a number is missing."""
    a, b = actual.detach().double(), expected.double()
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    error = float(((a - b).abs() / b.abs().clamp(min=1)).max())
    return error if error == error else float("inf")
