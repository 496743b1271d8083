"""Study folder -> report data. Every renderer reads the result of `build_report` and nothing else.

Layout (schema_version 3); an *estimate* is {value, low, high, n, level, estimator, note, runs}:

    study       name, task, model, parameters, budget, seeds, delta, reference arm, toy flag
    answer      headline, details, status, uncontrolled
    groups      arms that may be ranked together: bracket, roster, reference, arms (best mean first), best_set
    arms        one row per arm: seeds, score, gain, collapse, cost and stability estimates, statuses, style
    comparisons every arm minus its reference: value, low, high, n, p, test, family, label, why, runs
    all_pairs   the same inside each group (exploratory); ranks: bootstrap rank distributions
    base        score before training, one value per seed pair
    ratio_by_length  arm -> noise of the ratio per bin of response length, and its log-log slopes
    thresholds  share -> arm -> tokens and steps needed, with censoring
    declaration what study.lock declared, level of the tests, deviations (exploratory where there are any)
    use_when    condition -> arms not distinguishable from the best under it
    profiles    share of runs above a score; axes: order of the arms on each budget axis, and flips
    curves      held-out score per run and arm; panels: stability metrics per run
    trajectories  held-out score over entropy, per run, and the fit R = b - a e^H
    components  slots x arms; differences: dotted paths; identical: arms with equal resolved algorithms;
                skipped: arms left out, with the reason
    reward_components  arm -> named part of the reward -> held-out mean before and after, training mean at the end
    routing     arm -> mode, cost and movement of the routes by layer; of a mixture of experts
    validity    may anything be ranked: level and reason, findings, checks passed, noise floor, pairing
    setup       fairness contract: what must be the same, and whether it was
    noise       seed SD, evaluation SE, spread within and between cold starts
    benchmarks  scores of `harness eval`: the base model and the arms, per benchmark and setting
    tuning      default and tuned of a search's re-evaluation, null elsewhere
    samples     the same prompts at the first, last healthy and collapse step of every arm
    runs        every run with its events; torn: folders without spec.json
                evals: every evaluation; tally; caveats; provenance; glossary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.metrics import BY_KEY
from harness.report import collect, text, verdict
from harness.report.answer import answer, caveats
from harness.report.benchmarks import benchmark_scores
from harness.report.collect import Shares, evaluations, question_scores, run_facts
from harness.report.components import differences, identical, matrix, resolved, shared_setup
from harness.report.curves import PANELS, axis_rankings, component_panels, learning_curves, panels, pick_split
from harness.report.declaration import declaration
from harness.report.evidence import arm_evidence, pair_evidence, profiles, use_when
from harness.report.lengths import ratio_by_length
from harness.report.migrate import clock
from harness.report.provenance import provenance
from harness.report.rewards import reward_components
from harness.report.routing import routing_facts
from harness.report.rules import check_rules
from harness.report.samples import samples
from harness.report.style import assign
from harness.report.trajectories import trajectories
from harness.report.tuned import tuning_of
from harness.report.validity import validity

if TYPE_CHECKING:
    from harness.core.results import StudyFolder

SCHEMA_VERSION = 3
STATUSES = ("completed", "collapsed", "no_learning", "infra_failed", "unfinished")
COLUMNS = tuple(dict.fromkeys([*collect.COLUMNS, *(column for _, column, *_ in PANELS)]))  # of the steps, for readers
ALSO = ("kl_ref/k3", "update/rel", "budget/sampled_tokens")  # glossary entries beyond the panels


def build_report(study: StudyFolder, together: int = 1) -> dict[str, Any]:
    """All numbers of the report as plain JSON data; `together`: studies on one page, which share its error rate."""
    by_arm = {arm.name: list(study.of(arm.name)) for arm in study.spec.arms}
    facts = {arm: [run_facts(r) for r in runs] for arm, runs in by_arm.items()}
    questions = {r.path.name: question_scores(r) for r in study.runs}
    styles = assign([(a.name, a.algorithm, a.bracket) for a in study.spec.arms])
    arms = [
        verdict.arm_row({**a.model_dump(mode="json"), "style": styles[a.name]}, facts[a.name], len(study.spec.seeds))
        for a in study.spec.arms
    ]
    split = pick_split(study.runs)
    counted = {f["id"] for runs in facts.values() for f in runs if f["counted"]}
    curves = learning_curves(by_arm, split, counted)
    declared = declaration(study)
    declared = {**declared, "alpha": declared["alpha"] / together}
    report: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": "study report", "study": _study(study, facts)}
    report |= _judged(study, arms, facts, questions, declared)
    delta, lines = study.spec.delta, {a: [ln for ln in c["runs"] if ln["counted"]] for a, c in curves.items()}
    report["arms"] = [arm_evidence(a, facts[a["name"]], lines[a["name"]]) for a in report["arms"]]
    report["comparisons"] = [pair_evidence(c, facts, curves, delta) for c in report["comparisons"]]
    main: list[str] = next((g["arms"] for g in report["groups"] if g["ranked"] and len(g["arms"]) > 1), [])
    compared = main if report["comparisons"] else []
    report |= {"declaration": declared, "profiles": profiles(facts, [a["name"] for a in arms]),
               "axes": axis_rankings(curves, compared), "use_when": use_when(report)}  # fmt: skip
    algorithms, drawn = resolved(by_arm), [*panels(by_arm), *component_panels(by_arm)]
    own_recipe = {arm.name for arm in study.spec.arms if arm.recipe or arm.schedule}
    report |= {
        "ratio_by_length": ratio_by_length(by_arm, counted),
        "thresholds": [] if report["validity"]["reason"] else verdict.thresholds(curves, {a["name"]: a for a in arms}),
        "curves": {"split": split, "budget": study.spec.budget.sampled_tokens, "arms": curves},
        "panels": drawn,
        "trajectories": trajectories({"arms": curves}, drawn),
        "components": matrix(algorithms, study.spec.reference_arm),
        "differences": differences(algorithms, study.spec.reference_arm),
        "identical": identical({a: slots for a, slots in algorithms.items() if a not in own_recipe}),
        "skipped": [arm.model_dump() for arm in study.spec.skipped],
        "reward_components": reward_components(by_arm, counted),
        "routing": routing_facts(by_arm, counted),
        "setup": shared_setup(study),
        "noise": verdict.noise(facts),
        "samples": samples(by_arm),
        "runs": [f for runs in facts.values() for f in runs],
        "evals": evaluations(study.runs),
        "benchmarks": benchmark_scores(study),
        "missing": [{"arm": arm, "seed": seed} for arm, seed in study.missing],
        "unlisted": list(study.unlisted),
        "torn": list(study.torn),
        "tuning": tuning_of(study.path),
        "tally": _tally(study, facts),
        "provenance": provenance(study),
        "glossary": _glossary(),
    }
    report["caveats"] = caveats(report)
    report["answer"] = answer(report)
    check_rules(report)
    return report


def _judged(
    study: StudyFolder, arms: list[dict[str, Any]], facts: Mapping[str, Sequence[dict[str, Any]]],
    questions: Mapping[str, Shares], declared: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    delta, alpha = study.spec.delta, declared["alpha"]
    listed = verdict.groups(arms, study.spec.reference_arm)
    judged = validity(study, facts, listed)
    if judged["reason"] is not None:  # listed, in the order of the study, and nothing more
        unranked = [{**g, "ranked": False, "best_set": []} for g in listed]
        nothing: dict[str, Any] = {"comparisons": [], "all_pairs": [], "ranks": []}
        return {"validity": judged, "groups": unranked, "arms": arms, "base": verdict.base(facts), **nothing}
    pairs = verdict.all_pairs(listed, facts, questions, delta, alpha)
    primary = verdict.compare(listed, facts, questions, delta, alpha)
    verdict.best_sets(listed, {a["name"]: a for a in arms}, pairs)
    return {
        "validity": judged,
        "groups": listed,
        "arms": arms,
        "comparisons": [{**c, "exploratory": bool(declared["deviations"])} for c in primary],
        "all_pairs": pairs,
        "ranks": verdict.ranks(listed, facts),
        "base": verdict.base(facts),
    }


def _study(study: StudyFolder, facts: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    spec = study.spec
    parameters = {r.result.parameters for r in study.runs if r.result}
    size = max(parameters, default=None)
    return {
        "name": spec.name,
        "preset": spec.preset,
        "hash": spec.hash,
        "task": spec.task.name,
        "task_params": spec.task.params,
        "model": spec.model.name,
        "model_params": spec.model.params,
        "parameters": size,
        "parameters_words": text.count(size) if size is not None else "an unknown number of",
        "toy": spec.model.name.lower().startswith("tiny"),
        "watermark": _watermark(spec.model.name, size),
        "budget": spec.budget.model_dump(mode="json"),
        "budget_words": _budget_words(spec.budget.sampled_tokens, spec.budget.steps),
        "seeds": list(spec.seeds),
        "reference": spec.reference_arm,
        "delta": spec.delta,
        "clock": clock(spec.backend.device, spec.backend.threads),
        "on_policy": bool(facts) and _on_policy([f for runs in facts.values() for f in runs]),
    }


def _watermark(model: str, size: int | None) -> str | None:
    """What embedded models carry wherever a result of theirs is shown."""
    if not model.lower().startswith("tiny"):
        return None
    return f"Mechanism test{f', {text.count(size)} parameters' if size else ''}; not evidence about large models."


def _on_policy(runs: Sequence[dict[str, Any]]) -> bool:
    known = [r["updates_per_batch"] for r in runs if r["updates_per_batch"] is not None]
    return bool(known) and all(u == 1 for u in known)


def _budget_words(tokens: int | None, steps: int | None) -> str:
    parts = [f"{tokens:,} sampled tokens"] if tokens is not None else []
    parts += [f"{steps:,} steps"] if steps is not None else []
    return " or ".join(parts)


def _tally(study: StudyFolder, facts: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    runs = [f for members in facts.values() for f in members]
    found: dict[str, Any] = {s: sum(r["status"] == s for r in runs) for s in STATUSES}
    split = {
        s: {v: sum(r["status"] == s and r["validity"] == v for r in runs) for v in ("PASS", "WARN", "INVALID")}
        for s in STATUSES
    }
    return {
        **found, "started": len(runs), "missing": len(study.missing), "by_validity": split,
        "planned": len(study.spec.arms) * len(study.spec.seeds), "unlisted": len(study.unlisted),
        "wallclock_s": sum(r["wallclock_s"] or 0.0 for r in runs),
        "sampled_tokens": sum(r["sampled_tokens"] for r in runs),
    }  # fmt: skip


def _glossary() -> list[dict[str, Any]]:
    keys = dict.fromkeys([key for key, *_ in PANELS] + list(ALSO))
    return [
        {"key": m.key, "formula": m.formula, "unit": m.unit, "aggregation": m.aggregation, "doc": m.doc,
         "not_applicable": m.not_applicable}
        for m in (BY_KEY[k] for k in keys)
    ]  # fmt: skip
