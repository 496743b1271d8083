"""Where the numbers come from."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from harness.report.components import flatten
from harness.report.evidence import BOOTSTRAP_SEED

if TYPE_CHECKING:
    from harness.core.results import StudyFolder

FIELDS = (
    ("harness_version", "Harness"),
    ("numerics_version", "Numerics version"),
    ("git_commit", "Commit"),
    ("git_dirty", "Uncommitted changes"),
    ("python", "Python"),
    ("platform", "Platform"),
    ("cpu", "CPU"),
    ("num_cpus", "CPU cores"),
    ("gpu", "GPU"),
    ("model_sha256", "Initial weights (sha256)"),
    ("tokenizer_sha256", "Tokenizer (sha256)"),
    ("template_sha256", "Template (sha256)"),
)


def provenance(study: StudyFolder) -> dict[str, Any]:
    """Values over all finished runs; more than one value of a field is listed, not hidden."""
    found = [r.result.provenance for r in study.runs if r.result]
    rows = [{"what": title, "values": _distinct([getattr(p, field) for p in found])} for field, title in FIELDS]
    engines = _distinct([f"{p.engine.name} {p.engine.version or ''}, {p.engine.dtype}" for p in found if p.engine])
    rows.append({"what": "Rollout engine", "values": engines})
    backends = [r.spec.backend for r in study.runs] or [study.spec.backend]
    rows.append({"what": "Rollouts", "values": _distinct([_rollouts(b) for b in backends])})
    packages = _distinct([", ".join(f"{k} {v}" for k, v in sorted(p.packages.items())) for p in found])
    ended = [p.finished for p in found if p.finished]
    return {
        "rows": [r for r in rows if r["values"]],
        "packages": packages,
        "commands": _distinct([shlex.join(p.command) for p in found if p.command]),
        "started": min((p.started for p in found), default=None),
        "finished": max(ended, default=None),
        "study_hash": study.spec.hash,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "backend": {k: v for k, v in flatten(study.spec.backend.model_dump(mode="json")).items() if v is not None},
        "regenerate": f"harness report <results>/{study.path.name}",
    }


def _rollouts(backend: Any) -> str:
    """What sampled, and which level of pairing between the arms that gives."""
    if backend.sampler == "transformers":
        return f"transformers in {backend.rollout_dtype}; arms share prompts, their order and the sampling noise"
    return f"{backend.sampler} in {backend.rollout_dtype}; arms share prompts and their order, not the sampling noise"


def _distinct(values: list[Any]) -> list[str]:
    return list(dict.fromkeys(_say(v) for v in values if v is not None))


def _say(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
