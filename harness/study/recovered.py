"""The outcome of a recovery study: every attempt judged, a row per start point and remedy, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import yaml

from harness.core.checkpoints import listed, remove
from harness.core.errors import UsageError
from harness.core.provenance import collect
from harness.core.recovery import (
    RECOVERY,
    VERDICTS,
    AttemptRecord,
    AttemptSpec,
    RecoveryReport,
    RecoverySpec,
    RemedyRecord,
    Share,
    StartPoint,
)
from harness.core.results import CHECKPOINTS, RUNS, SPEC, read_run, write_atomic
from harness.core.spec import parse
from harness.stats.estimate import jeffreys
from harness.stats.threshold import Crossing, median_crossing
from harness.study.compare import make_writable
from harness.study.judge import judge

# "Irreversible" is asserted only from this much: METHOD 2.5.
MIN_ATTEMPTS, MIN_REMEDIES, ALPHA = 10, 3, 0.05


def write_plan(folder: Path, spec: RecoverySpec) -> None:
    """Writes recovery.yaml; a folder of that name with another plan is refused."""
    file = folder / RECOVERY
    if file.exists() and read_plan(folder) != spec:
        raise UsageError(
            f"recovery study {spec.name}",
            "one of that name exists with another plan, and their runs must not be mixed",
            "another --name, or the choices it was begun with",
        )
    make_writable(folder)
    write_atomic(file, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))


def read_plan(folder: Path) -> RecoverySpec:
    """The recovery.yaml of a folder."""
    file = folder / RECOVERY
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{file}", f"it cannot be read: {error}", "a folder that `harness recover` wrote") from None
    found: RecoverySpec = parse(RecoverySpec, data, str(file))
    return found


def outcome(folder: Path) -> RecoveryReport:
    """Judges what is there; unfinished attempts stay without a verdict."""
    spec = read_plan(folder)
    attempts = tuple(judged(folder, spec, attempt) for attempt in spec.attempts)
    rows = tuple(
        row
        for point in get_args(StartPoint)
        for remedy in spec.remedies
        if (row := _row(point, remedy, [a for a in attempts if (a.start, a.remedy) == (point, remedy)])) is not None
    )
    return RecoveryReport(
        spec=spec, attempts=attempts, rows=rows, answer=tuple(answer(spec, attempts)), provenance=collect([])
    )


def judged(folder: Path, spec: RecoverySpec, attempt: AttemptSpec) -> AttemptRecord:
    """The verdict on one attempt, from its run folder."""
    place, known = folder / RUNS / attempt.run_id, attempt.model_dump()
    run = read_run(place) if (place / SPEC).exists() else None
    if run is None or run.result is None:
        return AttemptRecord(**known, verdict=None, why="not finished")
    if run.result.status == "infra_failed":
        return AttemptRecord(**known, verdict=None, why=run.result.error or "failed", failed=True)
    episode = spec.episodes[attempt.episode]
    evals = [(e.step, e.score) for e in run.evals if e.split == "validation"]
    begun = episode.checkpoints[attempt.start]
    last = run.steps[-1]["step"] if run.steps else begun
    found = judge(episode, evals, run.events, last)
    return AttemptRecord(
        **known,
        verdict=found.verdict,
        why=found.why,
        recovered_after=None if found.at is None else found.at - begun,
        steps=last - begun,
        score=found.score,
    )


def drop_lost(folder: Path, spec: RecoverySpec, run_id: str) -> None:
    """Removes the checkpoints of an attempt that has ended without a recovery: nothing is left to do with them."""
    [attempt] = [a for a in spec.attempts if a.run_id == run_id]
    found = judged(folder, spec, attempt)
    if found.verdict is not None and found.verdict != "recovered":
        for checkpoint in listed(folder / RUNS / run_id / CHECKPOINTS):
            remove(checkpoint)


def _row(point: StartPoint, remedy: str, attempts: Sequence[AttemptRecord]) -> RemedyRecord | None:
    if not attempts:
        return None
    known = [a for a in attempts if a.verdict is not None]
    scores = [a.score for a in known if a.score is not None]
    times = [
        Crossing(value=float(a.recovered_after or 0), censored=False)
        if a.verdict == "recovered"
        else Crossing(value=float(a.steps or 0), censored=True)
        for a in known
    ]
    return RemedyRecord(
        start=point,
        remedy=remedy,
        attempts=len(known),
        verdicts={v: sum(a.verdict == v for a in known) for v in VERDICTS},
        unfinished=sum(a.verdict is None and not a.failed for a in attempts),
        failed=sum(a.failed for a in attempts),
        episodes=_share(known),
        median_steps=median_crossing(times),
        score=sum(scores) / len(scores) if scores else None,
    )


def _share(attempts: Sequence[AttemptRecord]) -> Share:
    """Attempts on one episode are not independent: an episode counts once, recovered if most of its attempts are."""
    episodes = sorted({a.episode for a in attempts})
    won = 0
    for episode in episodes:
        mine = [a.verdict == "recovered" for a in attempts if a.episode == episode]
        won += 2 * sum(mine) > len(mine)
    found = jeffreys(won, len(episodes))
    return Share(k=won, n=len(episodes), value=found.value, low=found.low, high=found.high)


def answer(spec: RecoverySpec, attempts: Sequence[AttemptRecord]) -> list[str]:
    """What follows, by rule; per start point, since a collapse may be cured from before it only."""
    said = []
    for point in get_args(StartPoint):
        mine = [a for a in attempts if a.start == point and a.verdict is not None]
        if not mine:
            continue
        won = [a for a in mine if a.verdict == "recovered"]
        remedies, episodes = len({a.remedy for a in mine}), len({a.episode for a in mine})
        amount = f"{len(mine)} attempts with {remedies} remedies from {_words(point)} ({_plural(episodes, 'episode')})"
        if won:
            best = sorted({spec.remedies[a.remedy] for a in won})
            said.append(f"{len(won)} of {amount} recovered, with: {', '.join(best)}.")
        elif len(mine) >= MIN_ATTEMPTS and remedies >= MIN_REMEDIES:
            said.append(
                f"None of {amount} recovered: irreversible here, with an upper 95 % bound on the share that would "
                f"recover of {bound(len(mine)):.2f} if the attempts were independent, and of {bound(episodes):.2f} "
                "with the episode as the unit."
            )
        else:
            said.append(
                f"None of {amount} recovered. That is too little to call it irreversible: {MIN_ATTEMPTS} attempts over "
                f"{MIN_REMEDIES} remedies are needed."
            )
    left = sum(a.verdict is None for a in attempts)
    return [*said, f"{_plural(left, 'attempt')} without a verdict."] if left else said


def bound(n: int) -> float:
    """Upper one-sided 95 % Clopper-Pearson bound of a share of which 0 of n were seen: 1 - alpha^(1/n)."""
    return float(1 - ALPHA ** (1 / n))


def _words(point: StartPoint) -> str:
    return {
        "last_healthy": "the last healthy checkpoint",
        "half": "half way to the onset",
        "collapsed": "the collapsed checkpoint",
    }[point]


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
