"""`harness tune`: a search per algorithm with the same budget each, then default and tuned on fresh seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.backends.executors.local import LocalExecutor
from harness.commands.compare import choices, close_study, interrupted, open_tracker, tell_where
from harness.commands.dry_run import predict, probe_run
from harness.commands.engine import num_parallel, require_engines
from harness.commands.lists import seeds
from harness.commands.options import CompareOptions
from harness.core.errors import UsageError, near
from harness.core.ports import RunState
from harness.core.results import write_study_spec
from harness.core.search import FINAL, SEARCH, Searched, SearchRecord, read_search, write_search
from harness.core.spec import BackendSpec, StudySpec, parse, stable_hash
from harness.models.preflight import check_prompt
from harness.models.recipes import held_out, recipe
from harness.study.build import Planned, build, parse_value
from harness.study.compare import plan_runs, run_study
from harness.study.importance import importances
from harness.study.live import LiveView, duration
from harness.study.measure import choose_backend, kept_backend
from harness.study.spaces import parse_dimension, space_of
from harness.study.spending import Limits
from harness.study.trials import controller, default_storage
from harness.study.tune import Search, check_search, final_rows, final_study, run_trials, trial_rows

FIRST_TUNING_SEED = 1000  # apart from the test seeds, which begin at 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """The command line as given."""

    compare: CompareOptions
    trials: int
    tuning_seeds: str
    top: int
    search: str | None  # the sampler
    objectives: str
    dims: tuple[str, ...]
    memory_gib: float | None
    kl_limit: float | None
    pruner: str
    budget: Limits  # of each algorithm
    storage: str | None


def run_tune(options: TuneOptions) -> int:
    """Plans, searches, runs the best again, reports; the exit code."""
    shared = options.compare
    measured: dict[str, Any] = {}

    def backend_of(spec: StudySpec) -> BackendSpec:
        known = shared.results / (shared.name or "")
        if shared.name and (known / SEARCH).exists():
            return kept_backend(read_search(known).final.backend, spec.backend)
        backend, facts = choose_backend(spec.model, spec.backend.model_dump(exclude_unset=True))
        measured.update(facts)
        require_engines(spec, backend)
        return backend

    options.budget.check()
    planned = build(choices(shared), recipe, held_out, backend_of)
    for arm in planned.spec.skipped:
        print(f"not searched: {arm.name}, {arm.reason}", file=sys.stderr)
    record = search_record(planned.spec, options)
    check_search(record)
    for warning in planned.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if shared.dry_run:
        return _show(record, measured, options)
    return _run(planned, record, measured, options)


def search_record(spec: StudySpec, options: TuneOptions) -> SearchRecord:
    """The checked plan; its name follows from everything but the number of trials and what is run again."""
    if len({a.roster for a in spec.arms}) > 1:
        raise UsageError("several rosters", "a search starts from one", "--roster matched")
    given = [parse_dimension(text, parse_value) for text in options.dims]
    names = {n.lower() for a in spec.arms for n in (a.name, a.algorithm)}
    for who, dimension in given:
        if who and who.lower() not in names:
            raise UsageError(f"--dim {who}:{dimension.path}", f"no arm is called {who!r}", near(who, names))
    arms = [a for a in spec.arms if a.bracket != "control"]
    objectives = tuple(o.strip() for o in options.objectives.split(","))
    sampler = options.search or ("tpe" if len(objectives) == 1 else "nsga2")
    tuning = seeds("--tuning-seeds", options.tuning_seeds, FIRST_TUNING_SEED)
    data: dict[str, Any] = {
        "final": spec, "searched": (), "tuning_seeds": tuning, "trials": options.trials,
        "sampler": sampler, "objectives": objectives, "top": options.top, "memory_gib": options.memory_gib,
        "kl_limit": options.kl_limit, "pruner": options.pruner,
    }  # fmt: skip
    spaces = {a.name: space_of(a, spec.recipe, given) for a in arms}
    key = stable_hash([spec.hash, {n: [d.model_dump(mode="json") for d in s] for n, s in spaces.items()},
                       {k: v for k, v in data.items() if k not in ("final", "trials", "top")}])[:6]  # fmt: skip
    name = options.compare.name or f"tune-{spec.name.rsplit('-', 1)[0]}-{key}"
    searched = tuple(
        Searched(arm=a, space=spaces[a.name], folder=(slug := _slug(a.name)), optuna_study=f"{name}/{slug}")
        for a in arms
    )
    record: SearchRecord = parse(SearchRecord, {**data, "name": name, "searched": searched}, "tune")
    return record


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _run(planned: Planned, record: SearchRecord, measured: Mapping[str, Any], options: TuneOptions) -> int:
    shared = options.compare
    folder = shared.results / record.name
    if not (folder / SEARCH).exists():
        check_prompt(record.final, planned.task)
    url = options.storage or default_storage(folder)
    with controller(url):
        write_search(folder, record)
        parallel = num_parallel(record.final, measured, shared.parallel)
        tracker = open_tracker(shared)
        gpus = int(measured.get("num_gpus", 0))
        searches = []
        for searched in record.searched:
            search = Search(url, folder, record, searched, options.budget)
            searches.append(search)
            executor = LocalExecutor(parallel, gpus, command=["harness", *sys.argv[1:]])
            print(_opening(search, record, parallel, folder), file=sys.stderr)
            tell_where(folder / searched.folder, tracker, url)
            if run_trials(search, executor, parallel, _Progress(record, quiet=shared.as_json)):
                return interrupted(executor)
            if tracker is not None:
                tracker.mirror(folder / searched.folder)
        return _again(record, searches, folder, parallel, gpus, tracker, options, url)


def _again(
    record: SearchRecord, searches: Sequence[Search], folder: Path, parallel: int, gpus: int, tracker: Any,
    options: TuneOptions, url: str,
) -> int:  # fmt: skip
    """The re-evaluation on fresh seeds, a study like any other, and both reports."""
    from harness.report.tuning import build as tuning_data
    from harness.report.tuning import terminal, write_tuning

    spec, what = final_study(record, searches)
    spec = spec.model_copy(update={"name": f"{record.name}-{FINAL}"})
    write_study_spec(folder / FINAL, spec)
    runs = plan_runs(spec, folder / FINAL)
    todo = sum(not r.done for r in runs)
    print(f"again on fresh seeds: {len(spec.arms)} configurations x {len(spec.seeds)} seeds ({todo} to do)",
          file=sys.stderr)  # fmt: skip
    executor = LocalExecutor(parallel, gpus, command=["harness", *sys.argv[1:]])
    with LiveView(runs, parallel, quiet=todo == 0) as view:
        outcome = run_study(runs, folder / FINAL, executor, tracker, view)
    if outcome.interrupted:
        return interrupted(executor)
    rows = {s.name: trial_rows(s) for s in searches}
    at = record.objectives.index("score")
    shares = {s.name: importances(s.complete, at) for s in searches}
    data = tuning_data(record, rows, final_rows(folder / FINAL, spec, what), shares)
    paths = write_tuning(folder, data)
    code = close_study(outcome, folder / FINAL, tracker, options.compare, paths)
    if not options.compare.as_json:
        print()
        print(terminal(data))
        print(f"trials  optuna-dashboard {url}")
    return code


class _Progress:
    """A line at every trial that ends."""

    def __init__(self, record: SearchRecord, *, quiet: bool) -> None:
        self._record, self._quiet, self._told = record, quiet, -1

    def __call__(self, search: Search, states: Mapping[str, RunState]) -> None:
        complete = search.complete
        if self._quiet or len(complete) == self._told:
            return
        self._told = len(complete)
        at = self._record.objectives.index("score")
        feasible = [t.values[at] for t in complete if all(v <= 0 for v in t.constraints.values())]
        best = f"{max(feasible):.3f}" if feasible else "-"
        spent = [(t.datetime_complete - t.datetime_start).total_seconds() for t in complete
                 if t.datetime_complete and t.datetime_start]  # fmt: skip
        left = self._record.trials - len(complete)
        running = max(1, sum(s == "running" for s in states.values()) // len(self._record.tuning_seeds))
        eta = duration(sum(spent) / len(spent) * left / running) if spent else "-"
        collapsed = sum(bool(t.user_attrs.get("collapsed")) for t in complete)
        print(f"{search.name}: {len(complete)}/{self._record.trials} trials, best {best}, {collapsed} with a collapse, "
              f"ETA {eta}", file=sys.stderr, flush=True)  # fmt: skip


def _opening(search: Search, record: SearchRecord, parallel: int, folder: Path) -> str:
    seeds = len(record.tuning_seeds)
    done = len(search.complete)
    return (
        f"{search.name}: {record.trials} trials ({done} done) x {seeds} tuning seeds, {record.sampler}, "
        f"{parallel} runs at a time -> {folder / search.folder_name}"
    )


def _show(record: SearchRecord, measured: Mapping[str, Any], options: TuneOptions) -> int:
    """The spaces and the predicted cost; nothing is run but a short probe, and nothing is written."""
    spec = record.final
    parallel = num_parallel(spec, measured, options.compare.parallel)
    tuning = len(record.searched) * record.trials * len(record.tuning_seeds)
    final = len(record.searched) * (1 + record.top) * len(spec.seeds)
    cost = predict(spec, probe_run(spec), tuning + final, parallel)
    if options.compare.as_json:
        print(json.dumps({"search": record.model_dump(mode="json"), "cost": cost}))
        return 0
    print(f"{record.name}  (nothing is run or written)")
    print(f"each of {len(record.searched)} algorithms: {record.trials} trials x tuning seeds "
          f"{list(record.tuning_seeds)}, sampler {record.sampler}, objectives {', '.join(record.objectives)}; "
          f"then defaults and the best {record.top} on seeds {list(spec.seeds)}")  # fmt: skip
    for s in record.searched:
        print(f"  {s.arm.name}: {'; '.join(d.words() for d in s.space)}")
    print(f"{tuning} tuning runs + at most {final} runs again: {cost['text']}")
    return 0
