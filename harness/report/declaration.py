"""What the study declared before its first run, and how it departs from that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.core.lock import FAMILY, METRIC, SINGLE, TEST, deviations, read_lock

if TYPE_CHECKING:
    from harness.core.results import StudyFolder

NONE = "nothing was declared before the runs (no study.lock)"


def declaration(study: StudyFolder) -> dict[str, Any]:
    """Plain data; `deviations` is empty only where the study keeps to a declaration made before its first run."""
    lock = read_lock(study.path)
    started = min((r.result.provenance.started for r in study.runs if r.result), default=None)
    if lock is None:
        return {"created": None, "alpha": SINGLE, "stages": [], "extensions": [], "deviations": [NONE],
                "primary_metric": METRIC, "family": FAMILY, "test": TEST, "delta": study.spec.delta,
                "first_run": started}  # fmt: skip
    return {
        "created": lock.created, "alpha": lock.alpha, "stages": list(lock.stages),
        "extensions": [e.model_dump(mode="json") for e in lock.extensions],
        "deviations": deviations(lock, study.spec, started), "primary_metric": lock.primary_metric,
        "family": lock.family, "test": lock.test, "delta": lock.delta, "first_run": started,
    }  # fmt: skip


def sentence(found: dict[str, Any]) -> str:
    """One line for page one."""
    if found["deviations"]:
        return f"Exploratory, since {'; '.join(found['deviations'])}."
    looks = " then ".join(str(n) for n in found["stages"])
    return (
        f"Declared before the first run ({found['created']}): judged at {looks} seeds, level {found['alpha']:g} each."
    )
