"""Simulated studies with known truth: how often a label is wrong, how often an interval covers.

`python -m tests.stats.simulated --out results/reference/statistics` is what `make simulate` does. Finished cells are
kept in simulation.json, so an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.core.provenance import collect
from harness.core.results import write_atomic
from harness.stats.aggregate import aggregates, improvement
from harness.stats.collapse import rate_difference, two_part_mean
from harness.stats.compare import Arm, compare_family
from harness.stats.estimate import Estimate, jeffreys, mean_t
from harness.stats.paired import paired_difference
from harness.stats.questions import clustered
from harness.stats.survival import Lifetime, kaplan_meier

WINNERS = ("A>B", "B>A")
NOMINAL = (0.93, 0.97)  # of a 95 % interval
Interval = tuple[float, float] | None


def arms(
    rng: np.random.Generator, n: int, num: int = 6, last: float = 0.0, spread: float = 1.0, collapse: float = 0.0
) -> list[Arm]:
    """Arms of equal mean that share their seeds; the last one is `last` higher and `spread` times as noisy."""
    scores = 0.5 + rng.normal(0, 0.05, (n, 1)) + rng.normal(0, 0.03, (n, num)) * [*[1.0] * (num - 1), spread]
    scores[:, -1] += last
    lost = rng.random(scores.shape) < collapse
    scores = np.where(lost, 0.05, scores)
    return [
        Arm(name=f"a{j}", scores=dict(enumerate(scores[:, j].tolist())), collapsed=bool(lost[:, j].any()))
        for j in range(num)
    ]


def false_winners(studies: int, n: int, seed: int, *, equal: int = 6, **kind: float) -> float:
    """Share of studies in which an arm of equal mean is called better or worse than the reference."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(studies):
        found = arms(rng, n, **kind)  # type: ignore[arg-type]
        labels = [c.label for c in compare_family([(a, found[0]) for a in found[1:]], 0.02)]
        wrong += any(label in WINNERS for label in labels[: equal - 1])
    return wrong / studies


def false_equivalence(studies: int, n: int, seed: int) -> float:
    """Share of studies of one arm that is exactly delta better in which both are called equivalent."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(studies):
        found = arms(rng, n, num=2, last=0.02)
        wrong += compare_family([(found[1], found[0])], 0.02)[0].label == "equivalent"
    return wrong / studies


def coverage(draw: Callable[[np.random.Generator], tuple[Interval, float]], repeats: int, seed: int) -> float:
    """Share of drawn intervals that hold the truth; draws without an interval do not count."""
    rng, hits = np.random.default_rng(seed), []
    for _ in range(repeats):
        interval, truth = draw(rng)
        if interval is not None:
            hits.append(interval[0] <= truth <= interval[1])
    return float(np.mean(hits))


def _interval(e: Estimate) -> Interval:
    return (e.low, e.high) if e.low is not None and e.high is not None else None


def normal_mean(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Student-t interval of normal scores."""
    return _interval(mean_t(list(rng.normal(0.6, 0.03, n)))), 0.6


def measured_mean(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """The same for scores measured on 8,000 questions."""
    rates = np.clip(rng.normal(0.6, 0.03, n), 0, 1)
    return _interval(mean_t(list(rng.binomial(8000, rates) / 8000))), 0.6


def mixed_mean(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Student-t interval where a fifth of the runs collapses: what the report does not show below twenty runs."""
    hit = rng.random(n) < 0.2
    return _interval(mean_t(list(np.where(hit, rng.uniform(0, 0.1, n), rng.normal(0.8, 0.03, n))))), 0.65


def two_part(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """The two-part interval of the same runs, from one collapse on."""
    hit = rng.random(n) < 0.2
    survived, lost = rng.normal(0.8, 0.03, int((~hit).sum())), rng.uniform(0, 0.1, int(hit.sum()))
    return _interval(two_part_mean(list(survived), list(lost), seed=int(rng.integers(2**31)))), 0.65


def difference(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Paired difference with a shared spread over seeds."""
    shared = rng.normal(0.5, 0.1, n)
    d = paired_difference(shared + 0.04 + rng.normal(0, 0.02, n), shared + rng.normal(0, 0.02, n), 0.02)  # type: ignore[arg-type]
    return (d.low or 0.0, d.high or 0.0), 0.04


def simultaneous(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """All five differences from the reference at once: covered where every one is."""
    found = arms(rng, n, last=0.1)
    pairs = compare_family([(a, found[0]) for a in found[1:]], 0.02)
    truth = [0.0] * 4 + [0.1]
    good = all(
        c.simultaneous and c.simultaneous[0] <= t <= c.simultaneous[1] for c, t in zip(pairs, truth, strict=True)
    )
    return (0.0, 1.0) if good else (2.0, 3.0), 0.5


def share(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Jeffreys interval of a collapse rate anywhere in [0, 1]."""
    p = float(rng.random())
    return _interval(jeffreys(int(rng.binomial(n, p)), n)), p


def rates(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Difference of the collapse rates 0.4 and 0.1."""
    return _interval(rate_difference(int(rng.binomial(n, 0.4)), n, int(rng.binomial(n, 0.1)), n)), 0.4 - 0.1


def questions(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Question-clustered interval, eight samples of each question."""
    return _interval(clustered([int(c) for c in rng.binomial(8, rng.beta(0.8, 0.8, n))], [8] * n)), 0.5


def alive(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Kaplan-Meier with Greenwood's log-log interval at half the budget; a tenth of the hazard is censoring."""
    collapse, censor = rng.exponential(1.0, n), rng.exponential(10.0, n)
    km = kaplan_meier(
        [Lifetime(time=float(min(c, x)), observed=bool(c < x)) for c, x in zip(collapse, censor, strict=True)]
    )
    at = max((i for i, t in enumerate(km.time) if t <= 0.5), default=None)
    if at is None or km.low[at] is None or km.high[at] is None:
        return None, 0.0
    return (km.low[at] or 0.0, km.high[at] or 0.0), float(np.exp(-0.5))


def bootstrap(rng: np.random.Generator, n: int, name: str) -> tuple[Interval, float]:
    """Stratified bootstrap over five tasks of n runs; the truth is that of the mixture of the tasks."""
    centres = (0.3, 0.4, 0.5, 0.6, 0.7)
    found = aggregates([rng.normal(c, 0.05, n) for c in centres], np.random.default_rng(rng.integers(2**31)), 1000)
    return _interval(found[name]), 0.5


def better(rng: np.random.Generator, n: int) -> tuple[Interval, float]:
    """Bootstrap interval of P(A > B) over five tasks."""
    shift = 0.05 * np.sqrt(2) * float(stats.norm.ppf(0.7))
    a = [rng.normal(c + shift, 0.05, n) for c in (0.3, 0.4, 0.5, 0.6, 0.7)]
    b = [rng.normal(c, 0.05, n) for c in (0.3, 0.4, 0.5, 0.6, 0.7)]
    return _interval(improvement(a, b, np.random.default_rng(rng.integers(2**31)), 500)), 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulated setting with what its rate must be."""

    name: str
    what: str
    repeats: int
    seed: int
    low: float
    high: float
    run: Callable[[int, int], float] = field(repr=False)  # (repeats, seed) -> rate

    def key(self) -> dict[str, Any]:
        """What decides the number."""
        return {"name": self.name, "repeats": self.repeats, "seed": self.seed}


def _null(n: int, words: str, repeats: int, **kind: Any) -> Cell:
    def run(studies: int, seed: int) -> float:
        return false_winners(studies, n, seed, **kind)

    return Cell(name=f"false winner, {n} seeds{words}", what="family-wise rate of a false A>B over six arms",
                repeats=repeats, seed=100 + n, low=0.0, high=0.055, run=run)  # fmt: skip


def _covers(draw: Callable[..., tuple[Interval, float]], n: int, repeats: int, words: str,
            bounds: tuple[float, float] = NOMINAL, **more: Any) -> Cell:  # fmt: skip
    first = (draw.__doc__ or "").splitlines()[0]
    return Cell(name=f"{words}, n = {n}", what=first, repeats=repeats, seed=n, low=bounds[0], high=bounds[1],
                run=partial(coverage, partial(draw, n=n, **more)))  # fmt: skip


def cells(scale: float = 1.0) -> list[Cell]:
    """Everything that is simulated; `scale` shortens it."""

    def times(repeats: int) -> int:
        return max(20, int(repeats * scale))

    null = [_null(n, "", times(10_000)) for n in (5, 7, 10, 14)]
    null += [
        _null(10, ", one arm far better", times(2000), last=0.3, equal=5),
        _null(10, ", one arm eight times as noisy", times(2000), spread=8.0, equal=5),
        _null(8, ", a fifth of the runs collapses", times(2000), collapse=0.2),
    ]
    tost = Cell(name="false equivalence, 10 seeds", what="an arm better by exactly delta is called equivalent",
                repeats=times(4000), seed=10, low=0.0, high=0.055,
                run=lambda r, s: false_equivalence(r, 10, s))  # fmt: skip
    wide = (0.93, 1.0)  # conservative on purpose
    covered = [
        *(_covers(normal_mean, n, times(20_000), "mean, normal scores") for n in (3, 5, 10, 20)),
        _covers(measured_mean, 5, times(20_000), "mean, scores on 8,000 questions"),
        *(_covers(difference, n, times(10_000), "paired difference") for n in (5, 10)),
        *(_covers(simultaneous, n, times(1000), "five differences at once", wide) for n in (5, 10)),
        *(_covers(two_part, n, times(4000), "two-part mean, 20 % collapse", wide) for n in (5, 10, 20)),
        *(_covers(share, n, times(20_000), "collapse rate, Jeffreys") for n in (5, 10, 20)),
        _covers(rates, 10, times(10_000), "difference of collapse rates", (0.93, 0.98)),
        _covers(questions, 100, times(4000), "score, clustered by question"),
        *(_covers(alive, n, times(4000), "share not collapsed, Kaplan-Meier") for n in (20, 40)),
        _covers(bootstrap, 10, times(1000), "mean, bootstrap, five tasks", (0.92, 0.97), name="mean"),
        _covers(bootstrap, 10, times(1000), "IQM, bootstrap, five tasks", (0.92, 0.98), name="IQM"),
        _covers(better, 10, times(1000), "P(A > B), bootstrap, five tasks", (0.92, 0.98)),
    ]
    refused = [
        _covers(mixed_mean, n, times(4000), "t interval with 20 % collapse (not shown)", (0.0, 0.93)) for n in (5, 10)
    ]
    return [*null, tost, *covered, *refused]


def simulate(index: int, scale: float) -> dict[str, Any]:
    """One cell, by its place in `cells`."""
    cell, start = cells(scale)[index], time.monotonic()
    rate = cell.run(cell.repeats, cell.seed)
    bounds = stats.binomtest(round(rate * cell.repeats), cell.repeats).proportion_ci(method="exact")
    data = {k: v for k, v in asdict(cell).items() if k != "run"}
    return {**data, "rate": rate, "rate_low": bounds.low, "rate_high": bounds.high,
            "ok": cell.low <= rate <= cell.high, "seconds": round(time.monotonic() - start, 1)}  # fmt: skip


def page(data: Mapping[str, Any]) -> str:
    """README.md."""
    rows = [
        f"| {c['name']} | {c['repeats']:,} | {c['rate']:.4f} | {c['rate_low']:.4f} to {c['rate_high']:.4f} | "
        f"{c['low']:g} to {c['high']:g} | {'yes' if c['ok'] else '**no**'} |"
        for c in data["cells"]
    ]
    p = data["provenance"]
    return "\n".join([
        "# statistics: simulated studies with known truth", "", "```",
        "make simulate        # = python -m tests.stats.simulated --out results/reference/statistics", "```", "",
        "A null study has six arms of equal mean that share their seeds; five are compared with the reference, and",
        'one false "A>B" or "B>A" among them makes the study wrong. The other rows are the share of intervals that',
        "hold the true value. A rate stands with its exact 95 % interval from the number of simulated studies.", "",
        "| what | studies | rate | 95 % | must lie in | holds |", "|---|---|---|---|---|---|", *rows, "",
        "Intervals of several differences at once, and of the mean of survivors and collapsed runs, may cover more",
        "than 97 %. A percentile bootstrap is on the narrow side, and is shown from twenty runs on",
        "only. The last rows are why a mean with a collapse has no t interval below twenty runs.",
        "", f"{p['cpu']}, Python {p['python']}, numpy {p['packages'].get('numpy')}, scipy "
        f"{p['packages'].get('scipy')}, commit {(p['git_commit'] or 'unknown')[:12]}; "
        f"{sum(c['seconds'] for c in data['cells']) / 60:.0f} minutes of one core at a time.",
        "",
    ])  # fmt: skip


def run(arguments: Sequence[str] | None = None) -> int:
    """Simulates what is missing, one line per cell; 1 where a rate is out of its bounds."""
    parser = argparse.ArgumentParser(prog="python -m tests.stats.simulated", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for README.md and simulation.json")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the studies, for a try")
    options = parser.parse_args(arguments)
    planned, file = cells(options.scale), options.out / "simulation.json"
    before = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else []
    done = {i: c for i, cell in enumerate(planned) for c in before if cell.key().items() <= c.items()}
    with ProcessPoolExecutor(options.workers) as pool:
        waiting = {pool.submit(simulate, i, options.scale): i for i in range(len(planned)) if i not in done}
        for future in as_completed(waiting):
            done[waiting[future]] = found = future.result()
            print(f"{len(done)}/{len(planned)} {found['name']}: {found['rate']:.4f}", flush=True)
            data = {"schema_version": 1, "provenance": _provenance(), "cells": [done[i] for i in sorted(done)]}
            write_atomic(file, json.dumps(data, indent=1) + "\n")
            write_atomic(options.out / "README.md", page(data))
    return 0 if all(c["ok"] for c in done.values()) else 1


def _provenance() -> dict[str, Any]:
    facts = collect([]).model_dump(mode="json")
    kept = {k: facts[k] for k in ("harness_version", "git_commit", "python", "packages", "cpu", "num_cpus", "started")}
    packages = {**kept["packages"], "numpy": np.__version__, "scipy": sys.modules["scipy"].__version__}
    return {
        **kept,
        "packages": packages,
        "command": "python -m tests.stats.simulated --out results/reference/statistics",
    }


if __name__ == "__main__":
    sys.exit(run())
