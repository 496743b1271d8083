"""`harness ablate`: the cells of a design as runs and as Optuna trials, then effects."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.backends.executors.local import LocalExecutor
from harness.commands.compare import choices, close_study, interrupted, open_tracker, opening, tell_where
from harness.commands.dry_run import show_plan
from harness.commands.engine import num_parallel, require_engines
from harness.commands.options import CompareOptions
from harness.core.ablation import write_ablation
from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.core.results import STUDY, read_study_spec
from harness.core.spec import BackendSpec, StudySpec
from harness.models.preflight import check_prompt
from harness.models.recipes import held_out, recipe
from harness.study.ablate import CellTrials
from harness.study.build import Planned, build, parse_value
from harness.study.compare import plan_runs, prepare_folder, run_study
from harness.study.live import LiveView
from harness.study.measure import choose_backend, kept_backend
from harness.study.spending import Limits, Purse
from harness.study.trials import controller, default_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateOptions:
    """The command line as given."""

    compare: CompareOptions
    design: str | None
    path: str | None
    stress: tuple[str, ...]
    storage: str | None
    budget: Limits  # of all cells together


def run_ablate(options: AblateOptions) -> int:
    """Plans, runs, analyses; the exit code."""
    shared = options.compare
    options.budget.check()
    measured: dict[str, Any] = {}

    def backend_of(spec: StudySpec) -> BackendSpec:
        known = shared.results / spec.name
        if (known / STUDY).exists():
            return kept_backend(read_study_spec(known).backend, spec.backend)
        backend, facts = choose_backend(spec.model, spec.backend.model_dump(exclude_unset=True))
        measured.update(facts)
        require_engines(spec, backend)
        return backend

    chosen = replace(choices(shared), kind="ablations", design=design_of(options))
    planned = build(chosen, recipe, held_out, backend_of)
    for warning in planned.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if shared.dry_run:
        return show_plan(planned, measured, shared)
    return _run(planned, measured, options)


def _run(planned: Planned, measured: Mapping[str, Any], options: AblateOptions) -> int:
    from harness.report.ablation_page import terminal, write_ablation_report

    shared, spec, record = options.compare, planned.spec, planned.ablation
    assert record is not None, "an ablation preset has a design"
    if not (shared.results / spec.name / STUDY).exists():
        check_prompt(spec, planned.task)
    folder = shared.results / spec.name
    url = options.storage or default_storage(folder)
    with controller(url):
        prepare_folder(spec, shared.results)
        write_ablation(folder, record)
        runs = plan_runs(spec, folder)
        parallel = num_parallel(spec, measured, shared.parallel)
        todo = sum(not r.done for r in runs)
        trials = CellTrials(url, spec.name, record, runs)
        trials.write(folder)
        print(opening(spec, len(runs), todo, parallel, folder), file=sys.stderr)
        tracker = open_tracker(shared)
        tell_where(folder, tracker, url, quiet=todo == 0)
        executor = LocalExecutor(parallel, int(measured.get("num_gpus", 0)), command=["harness", *sys.argv[1:]])
        trials.settle({})
        purse = Purse(options.budget, runs)
        with LiveView(runs, parallel, quiet=todo == 0) as view:

            def watch(states: Mapping[str, RunState]) -> None:
                view(states)
                trials.settle(states)
                purse.look(states)

            outcome = run_study(runs, folder, executor, tracker, watch)
        if outcome.interrupted:
            return interrupted(executor)
        paths = write_ablation_report(folder)
        code = close_study(outcome, folder, tracker, shared, paths)
        if not shared.as_json:
            print()
            print(terminal(json.loads(paths["ablation"].read_text(encoding="utf-8"))))
            print(f"trials  optuna-dashboard {url}")
    return code


def design_of(options: AblateOptions) -> dict[str, Any]:
    """What the command line adds to the preset's design."""
    data: dict[str, Any] = {}
    if options.path is not None:
        ends = tuple(options.path.split(":"))
        if len(ends) != 2 or not all(ends):
            raise UsageError(f"--path {options.path}", "a path leads from one algorithm to another", "--path grpo:dapo")
        data |= {"kind": "path", "between": ends}
    if options.design is not None:
        data["kind"] = options.design.replace("-", "_")
    if options.stress:
        data["stress"] = dict(stress_factor(s, options) for s in options.stress)
    return data


def stress_factor(text: str, options: AblateOptions) -> tuple[str, dict[str, dict[str, Any]]]:
    """`lr=1,3` -> the recipe's learning rate times these; `updates=4,16` -> mini-batches per rollout batch.

    Any other name is a path with its values: `backend.engine.dtype=float32,int8`, `logp_noise.sd=0,0.1`.
    """
    name, _, written = text.partition("=")
    values = [parse_value(v) for v in written.split(",")]
    if written and ("." in name or name == "old_logp"):
        return name, {str(v): {name: v} for v in values}
    if name not in ("lr", "updates") or not written or not all(isinstance(v, (int, float)) for v in values):
        raise UsageError(f"--stress {text}", "it is no stress",
                         "--stress lr=1,3 (factors), updates=4,16, or a path such as logp_noise.sd=0,0.1")  # fmt: skip
    if name == "updates":
        return name, {f"{v:g}": {"updates.mini_batches": v} for v in values}
    return name, {f"x{v:g}": {} if v == 1 else {"recipe.lr": _lr(options) * v} for v in values}


def _lr(options: AblateOptions) -> float:
    """The learning rate that the stress multiplies: the command line's, the preset's, or the model's."""
    from harness.study.build import with_choices
    from harness.study.presets import load_preset

    data, _ = with_choices(load_preset(options.compare.preset, "ablations"), choices(options.compare))
    model = data["model"]["name"] if isinstance(data["model"], dict) else data["model"]
    return float(data.get("recipe", {}).get("lr", recipe(model)["lr"]))
