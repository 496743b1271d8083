"""What a search found for the arms of its re-evaluation, from the report/tuning.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.core.search import FINAL

TUNING = Path("report") / "tuning.json"


def tuning_of(study: Path) -> dict[str, Any] | None:
    """Default, tuned and trials by algorithm; None where the study is not the re-evaluation of a search."""
    folder = study.resolve()
    if folder.name != FINAL or not (folder.parent / TUNING).exists():
        return None
    data = json.loads((folder.parent / TUNING).read_text(encoding="utf-8"))
    return {
        "name": data["name"], "trials_each": data["trials_each"], "tuning_seeds": data["tuning_seeds"],
        "arms": [
            {
                "arm": a["arm"], "default": a["default"]["test_score"],
                "tuned": a["tuned"]["test_score"] if a["tuned"] else None, "difference": a["difference"],
                "trials": a["counts"]["complete"], "collapsed": a["counts"]["collapsed"], "best_of": a["best_of"],
            }
            for a in data["algorithms"]
        ],
    }  # fmt: skip
