"""Which runs and which comparison may be ranked: the findings of every run, and those across runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.collect import COUNTED, values, whole_mean
from harness.stats.estimate import mean_t
from harness.validity import ORDER, across

if TYPE_CHECKING:
    from harness.core.results import Finding, RunFolder, StudyFolder

Run = dict[str, Any]


def validity(
    study: StudyFolder, facts: Mapping[str, Sequence[Run]], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """`level` of the comparison with its `reason`, findings that are not PASS, checks passed, noise floor, engines."""
    between = across.judge(study.spec, study.runs)
    rows = [*_of_runs(study.runs), *(_row("all arms", f.runs, f) for f in between if f.level != "PASS")]
    rows.sort(key=lambda r: -ORDER.index(r["level"]))
    reason = _refusal(between, facts, groups)
    told = {r["check"] for r in rows}
    made = [f.check for run in study.runs if run.result for f in run.result.validity_findings]
    made += [f.check for f in between if not f.check.startswith("same ")]  # those stand in `setup`
    known = [r["validity"] for runs in facts.values() for r in runs]
    return {
        "level": "INVALID" if reason else "WARN" if rows else "PASS",
        "reason": reason,
        "runs": {level: known.count(level) for level in ORDER} | {"unknown": known.count(None)},
        "findings": rows,
        "passed": [check for check in dict.fromkeys(made) if check not in told],
        "noise_floor": _noise_floor(study.runs),
        "pairing": _pairing(study.runs),
    }


def _of_runs(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Findings of runs that are not PASS, equal ones of an arm together."""
    found: dict[tuple[str, str, str], list[tuple[str, Finding]]] = {}
    plain = []
    for run in runs:
        result = run.result
        if result is None:
            continue
        for f in result.validity_findings:
            if f.level != "PASS":
                found.setdefault((run.spec.arm, f.check, f.level), []).append((run.run_id, f))
        if result.validity != "PASS" and not result.validity_findings:  # written by hand, or before findings were kept
            plain.append({
                "arm": run.spec.arm, "check": "recorded", "level": result.validity, "runs": [run.run_id],
                "measured": "n/a", "limit": "n/a", "why": "; ".join(result.validity_reasons), "advice": "",
            })  # fmt: skip
    return [*(_row(arm, [i for i, _ in same], same[0][1]) for (arm, _, _), same in found.items()), *plain]


def _row(arm: str, runs: Sequence[str], f: Finding) -> dict[str, Any]:
    return {
        "arm": arm, "check": f.check, "level": f.level, "runs": list(runs), "measured": f.measured, "limit": f.limit,
        "why": f.why, "advice": f.advice,
    }  # fmt: skip


def _refusal(
    between: Sequence[Finding], facts: Mapping[str, Sequence[Run]], groups: Sequence[Mapping[str, Any]]
) -> str | None:
    """Why nothing may be ranked, as a sentence; None where something may."""
    torn = [f for f in between if f.level == "INVALID"]
    if torn:
        also = f" Also not kept: {', '.join(f.check for f in torn[1:])}." if len(torn) > 1 else ""
        return f"{torn[0].check} was not kept ({torn[0].measured}). {torn[0].why}{also}"
    broken = [r for runs in facts.values() for r in runs if r["validity"] == "INVALID"]
    if not broken:
        return None
    seeds = {arm: {r["seed"] for r in runs if r["status"] in COUNTED} for arm, runs in facts.items()}
    valid = {arm: {r["seed"] for r in runs if r["counted"]} for arm, runs in facts.items()}
    pairs = [(name, g["reference"], g["ranked"]) for g in groups for name in g["arms"]]
    pairs = [p for p in pairs if p[1] is not None and p[0] != p[1]]
    ranked = [p for p in pairs if p[2] and seeds[p[0]] & seeds[p[1]]]
    wanted = ranked or [p for p in pairs if seeds[p[0]] & seeds[p[1]]]
    left = any(valid[a] & valid[b] for a, b, _ in wanted)
    if left or (not wanted and any(valid.values())):
        return None
    total = sum(len(runs) for runs in facts.values())
    first = next((reason for r in broken for reason in r["validity_reasons"]), "no reason was recorded")
    what = "no two arms are left to compare" if wanted else "no run is left"
    return f"the set-up of {len(broken)} of {total} runs is INVALID, and {what}. {first}"


def _noise_floor(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Score change and sampler-trainer gap of each arm that runs at learning rate 0."""
    arms: dict[str, list[tuple[str, float, float | None]]] = {}
    for run in runs:
        change = across.canary_change(run)
        if change is not None and run.result is not None and run.result.validity != "INVALID":
            gap = whole_mean(values(run.steps, "mismatch/abs_dlogp_mean"))
            arms.setdefault(run.spec.arm, []).append((run.run_id, change, gap))
    return [
        {
            "arm": arm,
            "change": {**mean_t([c for _, c, _ in found]).as_dict(), "runs": [i for i, _, _ in found]},
            "largest": max(abs(c) for _, c, _ in found),
            "abs_dlogp_mean": max((g for _, _, g in found if g is not None), default=None),
        }
        for arm, found in arms.items()
    ]


def _pairing(runs: Sequence[RunFolder]) -> str:
    """Which engines sampled, and what the arms share."""
    engines = [r.result.provenance.engine for r in runs if r.result and r.result.provenance.engine]
    if not engines:
        return "The rollout engine was not recorded."
    words = dict.fromkeys(f"{e.name} {e.version or '(version unknown)'} in {e.dtype}" for e in engines)
    shared = (
        "it repeats exactly, so that the arms of a seed pair share their sampling noise token by token"
        if all(e.exact_repeat for e in engines)
        else "it does not repeat exactly, so that the arms of a seed pair share prompts and order only"
    )
    return f"Sampled by {', '.join(words)}: {shared}."


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What page one says about the set-up: runs left out, warnings, noise floor."""
    found = report["validity"]
    said = []
    for level, words in (
        ("INVALID", "INVALID set-up, left out of every mean and ranking"),
        ("WARN", "Set-up warnings"),
    ):
        rows = [r for r in found["findings"] if r["level"] == level]
        if level == "INVALID":
            rows = [r for r in rows if r["arm"] != "all arms"]
        if rows:
            said.append(f"{words}: {'; '.join(_named(r) for r in rows)}.")
    for floor in found["noise_floor"]:
        c = floor["change"]
        said.append(
            f"Noise floor: at learning rate 0 ({floor['arm']}, n={c['n']}) the score changed by at most "
            f"{floor['largest']:.3f}."
        )
    return said


def _named(row: Mapping[str, Any]) -> str:
    count = len(row["runs"])
    return f"{row['check']}, {row['arm']}" + (f" ({count} run{'s' if count != 1 else ''})" if count else "")
