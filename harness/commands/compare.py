"""`harness compare`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.backends.executors.local import LocalExecutor
from harness.commands.dry_run import show_plan
from harness.commands.engine import engine_words, num_parallel, require_engines
from harness.commands.lists import names, seeds
from harness.commands.options import CompareOptions
from harness.commands.verdict import refused
from harness.core.errors import UsageError
from harness.core.results import STUDY, read_study_spec
from harness.core.spec import BackendSpec, StudySpec
from harness.models.preflight import check_prompt
from harness.models.recipes import held_out, recipe
from harness.study.build import Choices, Planned, build, parse_value
from harness.study.compare import Outcome, plan_runs, prepare_folder, run_study
from harness.study.live import LiveView
from harness.study.measure import choose_backend, kept_backend

PATIENCE_S = 300.0  # for running steps to end after an interrupt; a second interrupt ends them at once


def run_compare(options: CompareOptions) -> int:
    """Plans, runs, reports; the exit code."""
    measured: dict[str, Any] = {}

    def backend_of(spec: StudySpec) -> BackendSpec:
        known = options.results / spec.name
        if (known / STUDY).exists():  # a study keeps the choices it was begun with
            return kept_backend(read_study_spec(known).backend, spec.backend)
        backend, facts = choose_backend(spec.model, spec.backend.model_dump(exclude_unset=True))
        measured.update(facts)
        require_engines(spec, backend)
        return backend

    planned = build(choices(options), recipe, held_out, backend_of)
    for warning in planned.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.dry_run:
        return show_plan(planned, measured, options)
    return run_planned(planned, measured, options)


def run_planned(planned: Planned, measured: Mapping[str, Any], options: CompareOptions) -> int:
    """Runs what is not done of a study, reports; the exit code."""
    spec = planned.spec
    if not (options.results / spec.name / STUDY).exists():
        check_prompt(spec, planned.task)
    folder = prepare_folder(spec, options.results, two_stage=options.two_stage)
    runs = plan_runs(spec, folder)
    parallel = num_parallel(spec, measured, options.parallel)
    todo = sum(not r.done for r in runs)
    print(opening(spec, len(runs), todo, parallel, folder), file=sys.stderr)
    tracker = open_tracker(options)
    tell_where(folder, tracker, quiet=todo == 0)
    executor = LocalExecutor(parallel, int(measured.get("num_gpus", 0)), command=["harness", *sys.argv[1:]])
    with LiveView(runs, parallel, quiet=todo == 0) as view:
        outcome = run_study(runs, folder, executor, tracker, view)
    if outcome.interrupted:
        return interrupted(executor)
    return close_study(outcome, folder, tracker, options)


def choices(options: CompareOptions) -> Choices:
    """Command line -> choices; what cannot be read is refused here."""
    if options.steps is not None and options.tokens is not None:
        raise UsageError("--steps and --tokens", "a budget has one primary limit", "one of them")
    budget = None
    for key, value in (("steps", options.steps), ("sampled_tokens", options.tokens)):
        if value is not None:
            if value < 1:
                raise UsageError(
                    f"a budget of {value} {key}", "nothing would be trained", "1 or more; base model: -a base"
                )
            budget = {key: value}
    given = {
        "sampler": options.sampler,
        "threads": options.threads,
        "dtype": options.dtype,
        "device": options.device,
    }
    return Choices(
        preset=options.preset,
        task=_task(options),
        model=options.model,
        arms=names("--algorithms", options.algorithms),
        controls=() if options.controls == "none" else names("--controls", options.controls),
        rosters={None: None, "both": ("matched", "published")}.get(options.roster, (options.roster or "",)),
        seeds=None if options.seeds is None else seeds("--seeds", options.seeds),
        budget=budget,
        backend={k: v for k, v in given.items() if v is not None},
        sets=options.sets,
        run_equivalent=options.run_equivalent,
        name=options.name,
    )


def task_params(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` of the command line as parameters of a task."""
    params: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--task-param {text}", "a parameter has the form name=value", "e.g. -t min_terms=2")
        params[name] = parse_value(value)
    return params


def _task(options: CompareOptions) -> dict[str, Any]:
    params = task_params(options.task_params)
    shorts = (("prompt", options.prompt), ("answer_field", options.answer_field), ("reward_function", options.reward))
    params |= {k: v for k, v in shorts if v is not None}
    template: dict[str, Any] = {
        k: v for k, v in (("system", options.system), ("style", options.template)) if v is not None
    }
    if options.stop:
        template["stop"] = options.stop
    task: dict[str, Any] = {"name": options.task} if options.task else {}
    return task | ({"params": params} if params else {}) | ({"template": template} if template else {})


def open_tracker(options: CompareOptions) -> Any:
    """MLflow, unless it is switched off."""
    if not options.mlflow:
        return None
    from harness.backends.trackers.mlflow import MlflowTracker

    return MlflowTracker(os.environ.get("MLFLOW_TRACKING_URI"), options.results)


def tell_where(folder: Path, tracker: Any, storage: str | None = None, *, quiet: bool = False) -> None:
    """The commands that show a running study in a browser."""
    if quiet:
        return
    lines = [f"page    harness report {folder} --watch"]
    lines += [f"curves  {curves(tracker.uri)}"] if tracker is not None else []
    lines += [f"trials  optuna-dashboard {storage}"] if storage is not None else []
    print("\n".join(lines), file=sys.stderr)


def opening(spec: StudySpec, runs: int, todo: int, parallel: int, folder: Path) -> str:
    """What is about to run."""
    if not todo:
        return f"{folder}: all {runs} runs are done; writing the report again"
    budget = (
        f"{spec.budget.sampled_tokens:,} sampled tokens" if spec.budget.sampled_tokens else f"{spec.budget.steps} steps"
    )
    b = spec.backend
    return (
        f"{spec.name}: {len(spec.arms)} arms x {len(spec.seeds)} seeds = {runs} runs ({todo} to do), {budget} each\n"
        f"{spec.model.name} on {spec.task.name}, {engine_words(b)}, {b.dtype} on {b.device}, "
        f"{b.threads} thread(s) per run, {parallel} at a time -> {folder}"
    )


def interrupted(executor: LocalExecutor) -> int:
    """Lets running steps end; 130."""
    print(
        "\ninterrupted: waiting for the running steps to end (interrupt again to end them at once) ...",
        file=sys.stderr,
    )
    try:
        executor.shutdown(PATIENCE_S)
    except KeyboardInterrupt:
        executor.shutdown(0.0)
    print("everything is resumable: repeat the same command to continue", file=sys.stderr)
    return 130


def curves(uri: str) -> str:
    """Where to look at the mirrored curves: a server's address, or the command that opens a local file."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def close_study(
    outcome: Outcome,
    folder: Path,
    tracker: Any,
    options: CompareOptions,
    more: Mapping[str, Path] = MappingProxyType({}),
) -> int:
    """Report, mirror, table, what failed; the exit code. `more`: further reports of the study."""
    from harness.report.terminal import terminal_table
    from harness.report.write import write_report

    paths = {**write_report(folder), **more}
    if tracker is not None:
        tracker.mirror(folder)
        tracker.close()
    data = json.loads(paths["json"].read_text(encoding="utf-8"))
    if options.as_json:
        print(
            json.dumps(
                {"study": str(folder), "report": {k: str(p) for k, p in paths.items()}, "failed": outcome.failed}
            )
        )
    else:
        print(terminal_table(data, shutil.get_terminal_size((100, 24)).columns))
        print(
            "\n".join(
                [
                    f"study   {folder}",
                    *(
                        f"{kind:7} {path}"
                        for kind, path in paths.items()
                        if kind in ("html", "md", "json") or kind in more
                    ),
                ]
            )
        )
        if tracker is not None:
            print(f"curves  {curves(tracker.uri)}")
    for run_id, words in outcome.failed.items():
        print(f"\nfailed: {run_id}\n{words}\n  (repeat the command to try it again)", file=sys.stderr)
    return refused(data) or (4 if outcome.failed else 0)
