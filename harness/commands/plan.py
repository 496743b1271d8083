"""`harness plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.commands.lists import numbers
from harness.core.errors import UsageError
from harness.core.results import RunFolder, StudyFolder, read_study
from harness.report.build import build_report
from harness.report.text import count, fraction
from harness.stats.power import beta_rates
from harness.study.plan import Basis, Needs, plan

MIN_PAIRS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The command line as given."""

    study: Path | None
    gain: float
    arms: int | None
    sd: float | None
    base: float | None
    siblings: str
    tokens: int | None
    speed: float | None
    as_json: bool


def run_plan(options: PlanOptions) -> int:
    """Prints what a study needs; 2 where it cannot succeed."""
    basis = _basis(options)
    needs = plan(basis, numbers("--siblings", options.siblings, "8,16"))
    if options.as_json:
        print(json.dumps(needs.as_dict()))
    else:
        _show(needs, basis)
    return 2 if needs.hopeless else 0


def _basis(options: PlanOptions) -> Basis:
    pilot = read_study(options.study) if options.study else None
    if pilot is None and (options.sd is None or options.base is None):
        raise UsageError(
            "no pilot study, and --sd or --base is missing",
            "the spread over seeds and the base pass rate decide how much is needed",
            "name a study with three seeds or more, or state both, e.g. --sd 0.03 --base 0.2",
        )
    sd, pairs, comparisons = options.sd, None, options.arms
    if pilot is not None and sd is None:
        sd, pairs = _pilot_sd(pilot)
    if comparisons is None:
        comparisons = max(1, len(pilot.spec.arms) - 1) if pilot else 1
    rates: Sequence[float] = [options.base] if options.base is not None else _pilot_rates(pilot)
    runs = [r.result for r in pilot.runs if r.result and r.result.status != "infra_failed"] if pilot else []
    tokens = options.tokens or (max((r.sampled_tokens for r in runs), default=0) or None)
    seconds = sum(r.wallclock_s for r in runs)
    speed = options.speed or (sum(r.sampled_tokens for r in runs) / seconds if seconds else None)
    stated = [name for name, value in (("SD", options.sd), ("base", options.base)) if value is not None]
    source = f"pilot {pilot.path.name}" if pilot else "stated"
    if pilot and stated:
        source += f"; {' and '.join(stated)} stated"
    assert sd is not None
    return Basis(
        gain=options.gain, comparisons=comparisons, sd=sd, pairs=pairs, pass_rates=rates, tokens=tokens, speed=speed,
        source=source,
    )  # fmt: skip


def _pilot_sd(pilot: StudyFolder) -> tuple[float, int]:
    """The largest SD of a paired difference among the pilot's comparisons; of one arm's scores times sqrt 2 without."""
    report = build_report(pilot)
    known = [(c["sd"], c["n"]) for c in report["comparisons"] if c["sd"] is not None and not c["collapse"]]
    if known:
        return max(known)
    arms = [(n["seed_sd"] * 2**0.5, n["n"]) for n in report["noise"] if n["seed_sd"] is not None]
    if not arms:
        raise UsageError(
            f"{pilot.path}: no arm has {MIN_PAIRS} scored seeds", "its spread over seeds is unknown",
            "a pilot of one arm with four seeds (`harness compare -a grpo --seeds 4`), or --sd",
        )  # fmt: skip
    return max(arms)


def _pilot_rates(pilot: StudyFolder | None) -> Sequence[float]:
    """Pass rates of the questions before training, freed of the noise of few samples."""
    assert pilot is not None
    for run in pilot.runs:
        found = _at_start(run)
        if found:
            return found
    raise UsageError(
        f"{pilot.path}: no evaluation before training", "the base pass rate is unknown", "state it: --base 0.2"
    )


def _at_start(run: RunFolder) -> list[float]:
    for e in run.evals:
        kept = [q for q in e.questions if q.n == e.samples]
        if e.step == 0 and kept:
            return [float(p) for p in beta_rates([q.correct for q in kept], e.samples)]
    return []


def _show(needs: Needs, basis: Basis) -> None:
    console = Console(highlight=False)
    several = f", corrected for {basis.comparisons} comparisons" if basis.comparisons > 1 else ""
    console.print(f"To see a difference of {basis.gain:g} with 80 % power{several} ({needs.source}):\n")
    upper = f" (up to {needs.seeds_upper}: SD at its upper 80 % bound)" if needs.seeds_upper != needs.seeds else ""
    console.print(f"  seeds       {needs.seeds or 'more than 10,000'}{upper}, SD of paired differences {basis.sd:.3g}")
    console.print(f"              {needs.seeds_equivalence or 'more than 10,000'} to show equivalence within it")
    shown = ", ".join(f"{n} seeds {d:.3f}" for n, d in needs.detectable.items())
    console.print(f"  detectable  {shown}")
    console.print(f"  questions   {needs.questions:,} per evaluation keep its noise under a third of that SD;")
    console.print(f"              {needs.questions_pair:,} to tell two fixed policies apart by it")
    groups = ", ".join(f"{g} siblings {fraction(share)}" for g, share in needs.informative.items())
    console.print(f"  groups with a signal at a base pass rate of {fraction(needs.base)}: {groups}")
    if needs.tokens is not None:
        hours = "" if needs.hours is None else f", about {needs.hours:,.1f} hours one run at a time"
        console.print(f"  cost        {count(needs.tokens)} sampled tokens{hours}")
    for why in needs.hopeless:
        console.print(f"\n[bold]cannot succeed[/bold]: {why}")
