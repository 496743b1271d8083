"""Responses to read: fixed prompts (the first of the evaluation set), never picked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.core.results import RunFolder, SampleRecord

PROMPTS = 3
MAX_CHARS = 700


def samples(runs: Mapping[str, Sequence[RunFolder]]) -> dict[str, Any]:
    """Per arm: responses of the first seed and of collapsed runs to the first prompts, at the first and last step."""
    chosen = [r for members in runs.values() for i, r in enumerate(members) if i == 0 or _collapsed(r)]
    split = next(
        (s for s in ("test", "validation", "train") if any(x.split == s for r in chosen for x in r.samples)), None
    )
    return {
        "split": split,
        "rule": f"the first {PROMPTS} prompts of each run's samples, at its first and last kept step",
        "runs": [entry for r in chosen if (entry := _of_run(r, split))],
    }


def _collapsed(run: RunFolder) -> bool:
    return run.result is not None and run.result.status == "collapsed"


def _of_run(run: RunFolder, split: str | None) -> dict[str, Any] | None:
    kept = [s for s in run.samples if s.split == split]
    if not kept:
        return None
    rows = []
    for step in sorted({min(s.step for s in kept), max(s.step for s in kept)}):
        prompts = list(dict.fromkeys(s.prompt_id for s in kept if s.step == step))[:PROMPTS]
        first: dict[str, SampleRecord] = {}
        for s in (s for s in kept if s.step == step and s.prompt_id in prompts):
            first.setdefault(s.prompt_id, s)
        rows += [_plain(s) for s in first.values()]
    return {
        "arm": run.spec.arm,
        "run": run.path.name,
        "seed": run.spec.seed,
        "collapsed": _collapsed(run),
        "rows": rows,
    }


def _plain(s: SampleRecord) -> dict[str, Any]:
    return {
        "step": s.step, "prompt_id": s.prompt_id, "prompt": _cut(s.prompt), "response": _cut(s.response),
        "tokens": s.tokens, "reward": s.reward, "correct": s.correct, "extracted": s.extracted, "why": _cut(s.why),
    }  # fmt: skip


def _cut(content: str) -> str:
    """Long text is cut, and says so."""
    return content if len(content) <= MAX_CHARS else f"{content[:MAX_CHARS]} [cut, {len(content)} characters]"
