"""Responses to read: fixed prompts (the first of the evaluation set), never picked by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.results import COLLAPSED

if TYPE_CHECKING:
    from harness.core.results import RunFolder, SampleRecord

PROMPTS = 3
SPLITS = ("test", "validation", "train")
MOMENTS = ("first", "last healthy", "collapse", "last")
MAX_CHARS = 700


def samples(runs: Mapping[str, Sequence[RunFolder]]) -> dict[str, Any]:
    """The same prompts for every arm: a run of each at its first, last healthy, collapsed and last kept step.

    The run is the arm's first collapsed one, or its first seed.
    """
    chosen = {arm: _chosen(members) for arm, members in runs.items() if members}
    kept = {arm: run for arm, run in chosen.items() if run.samples}
    split = next((s for s in SPLITS if any(x.split == s for r in kept.values() for x in r.samples)), None)
    by_arm = {arm: [s for s in run.samples if s.split == split] for arm, run in kept.items()}
    by_arm = {arm: rows for arm, rows in by_arm.items() if rows}
    counts = Counter(i for rows in by_arm.values() for i in dict.fromkeys(s.prompt_id for s in rows))
    order = list(dict.fromkeys(s.prompt_id for rows in by_arm.values() for s in rows))
    shown = sorted(order, key=lambda i: -counts[i])[:PROMPTS]  # those most arms answered, in their order
    moments = {arm: _moments(kept[arm], rows) for arm, rows in by_arm.items()}
    return {
        "split": split,
        "rule": f"the first {PROMPTS} prompts that most arms answered, in a run of each arm: its first collapsed one, "
                "or its first seed",
        "arms": [{"arm": arm, "run": kept[arm].path.name, "seed": kept[arm].spec.seed,
                  "collapsed": _collapsed(kept[arm]), "moments": moments[arm]} for arm in by_arm],
        "prompts": [_side_by_side(i, by_arm, moments) for i in shown],
    }  # fmt: skip


def _chosen(members: Sequence[RunFolder]) -> RunFolder:
    lost = [r for r in members if _collapsed(r) and r.samples]
    return (lost or [r for r in members if r.samples] or members)[0]


def _collapsed(run: RunFolder) -> bool:
    return run.result is not None and run.result.status == "collapsed"


def _moments(run: RunFolder, rows: Sequence[SampleRecord]) -> dict[str, int]:
    """Moment -> step: the kept steps next to the onset of the first collapse."""
    steps = sorted({s.step for s in rows})
    found = {"first": steps[0]}
    onset = min((e.onset_step for e in run.events if e.severity in COLLAPSED), default=None)
    if onset is not None and _collapsed(run):
        healthy, after = [s for s in steps if s < onset], [s for s in steps if s >= onset]
        found |= {"last healthy": healthy[-1]} if healthy else {}
        found |= {"collapse": after[0]} if after else {}
    return found | ({"last": steps[-1]} if steps[-1] not in found.values() else {})


def _side_by_side(
    prompt: str, by_arm: Mapping[str, Sequence[SampleRecord]], moments: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """One prompt: a row per moment, a cell per arm; None where nothing was kept."""
    text = next(s.prompt for rows in by_arm.values() for s in rows if s.prompt_id == prompt)
    found = []
    for moment in MOMENTS:
        cells = [
            next((_plain(s) for s in rows if (s.prompt_id, s.step) == (prompt, moments[arm].get(moment))), None)
            for arm, rows in by_arm.items()
        ]
        if any(cells):
            found.append({"moment": moment, "cells": cells})
    return {"prompt_id": prompt, "prompt": _cut(text), "rows": found}


def _plain(s: SampleRecord) -> dict[str, Any]:
    return {
        "step": s.step, "response": _cut(s.response),
        "tokens": s.tokens, "reward": s.reward, "correct": s.correct, "extracted": s.extracted, "why": _cut(s.why),
    }  # fmt: skip


def _cut(content: str) -> str:
    """Long text is cut, and says so."""
    return content if len(content) <= MAX_CHARS else f"{content[:MAX_CHARS]} [cut, {len(content)} characters]"
