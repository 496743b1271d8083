"""`harness recover`: restarts of collapsed runs with one thing changed, judged and counted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.backends.executors.local import LocalExecutor
from harness.commands.compare import PATIENCE_S
from harness.commands.lists import names, seeds
from harness.commands.options import runs_at_once
from harness.core.collapse import first_collapse
from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.core.recovery import RecoveryReport
from harness.core.results import REPORT, RESULT, RUNS, SPEC, STUDY, RunResult, read_run
from harness.core.spec import RunSpec, parse
from harness.study.compare import Outcome, PlannedRun, run_study
from harness.study.disk import human
from harness.study.live import LiveView, duration
from harness.study.measure import EMBEDDED, measured
from harness.study.recover import FIRST_SEED, Models, RecoveryChoices, RecoveryPlan, plan_recovery
from harness.study.recovered import drop_lost, outcome, write_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverOptions:
    """The command line as given; None leaves what a YAML file says, or the default."""

    runs: tuple[Path, ...]
    onset: int | None
    confirm: int | None
    starts: str | None
    remedies: str | None
    seeds: str | None
    steps: int | None
    other: str | None
    margin: int | None
    parallel: int | None
    results: Path
    name: str | None
    dry_run: bool
    as_json: bool


def run_recover(options: RecoverOptions) -> int:
    """Plans, runs what is not done, judges, writes; the exit code."""
    plan = plan_recovery(choices(options), models())
    folder = options.results / plan.spec.name
    planned = [PlannedRun(spec=r, folder=folder / RUNS / r.run_id, done=_done(folder, r)) for r in plan.runs]
    facts = {} if plan.runs[0].model.name in EMBEDDED else measured(plan.runs[0].model)
    parallel = options.parallel or runs_at_once(plan.runs[0], facts)
    if options.dry_run:
        return _show(plan, planned, parallel, folder, as_json=options.as_json)
    write_plan(folder, plan.spec)
    todo = sum(not r.done for r in planned)
    print(
        f"{plan.spec.name}: {len(planned)} attempts ({todo} to do), {parallel} at a time -> {folder}", file=sys.stderr
    )
    executor = LocalExecutor(parallel, int(facts.get("num_gpus", 0)), command=["harness", *sys.argv[1:]])
    ended: set[str] = set()

    def watch(states: Mapping[str, RunState]) -> None:
        view(states)
        for run_id in (i for i, s in states.items() if s == "done" and i not in ended):
            ended.add(run_id)
            drop_lost(folder, plan.spec, run_id)

    with LiveView(planned, parallel, quiet=todo == 0) as view:
        found = run_study(planned, folder, executor, None, watch)
    if found.interrupted:
        print("\ninterrupted: waiting for the running steps to end ...", file=sys.stderr)
        executor.shutdown(PATIENCE_S)
        print("everything is resumable: repeat the same command to continue", file=sys.stderr)
        return 130
    return _close(found, folder, as_json=options.as_json)


def show_recovery(folder: Path, *, as_json: bool) -> RecoveryReport:
    """Judges what is there, writes report/recovery.json, .md, .html and figures, prints."""
    from harness.report.recovery import terminal
    from harness.report.recovery_page import write_recovery

    record = outcome(folder)
    data = json.loads(record.model_dump_json())
    paths = write_recovery(folder / REPORT, data)
    if as_json:
        print(json.dumps({"study": str(folder), "report": {k: str(p) for k, p in paths.items()}, **data}))
    else:
        print(terminal(data, shutil.get_terminal_size((120, 24)).columns))
        print("\n" + "\n".join(f"{kind:7} {path}" for kind, path in paths.items()))
    return record


def _close(found: Outcome, folder: Path, *, as_json: bool) -> int:
    show_recovery(folder, as_json=as_json)
    for run_id, words in found.failed.items():
        print(f"\nfailed: {run_id}\n{words}\n  (repeat the command to try it again)", file=sys.stderr)
    return 4 if found.failed else 0


def models() -> Models:
    """What the room of models knows."""
    from harness.core.registry import build_task
    from harness.models.load import pinned
    from harness.models.preflight import longest_response
    from harness.models.recipes import recipe

    def longest(spec: RunSpec) -> int | None:
        return longest_response(spec, build_task(spec.task.name, spec.task.params))

    return Models(recipe_of=recipe, pinned=pinned, longest=longest)


def choices(options: RecoverOptions) -> RecoveryChoices:
    """A YAML file, where one is named, with the command line on top."""
    data: dict[str, Any] = {}
    files = [p for p in options.runs if p.suffix in (".yaml", ".yml")]
    if files:
        if len(options.runs) > 1:
            raise UsageError("several arguments", "a YAML file names the runs itself", "the file alone")
        data = _read(files[0])
    given = {
        "runs": [str(p) for p in options.runs] if not files else None,
        "onset": options.onset, "confirm": options.confirm, "starts": names("--starts", options.starts),
        "remedies": names("--remedies", options.remedies),
        "seeds": None if options.seeds is None else seeds("--seeds", options.seeds, FIRST_SEED), "steps": options.steps,
        "other": options.other, "margin": options.margin, "name": options.name,
    }  # fmt: skip
    data |= {k: v for k, v in given.items() if v is not None}
    found: RecoveryChoices = parse(RecoveryChoices, data, str(files[0]) if files else "recover")
    runs = tuple(run for place in found.runs for run in collapsed_runs(Path(place)))
    return found.model_copy(update={"runs": runs})


def _read(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{file}", " ".join(str(error).split()), "a YAML file with `type: recovery`") from None
    if not isinstance(data, dict) or data.get("type") != "recovery":
        raise UsageError(f"{file}", "it does not say `type: recovery`", "type: recovery, runs: [...], ...")
    return data


def collapsed_runs(place: Path) -> list[str]:
    """A run folder as it is; of a study, every run with a collapse in its events."""
    if not (place / STUDY).exists():
        return [str(place)]
    folders = sorted(p.parent for p in place.glob(f"{RUNS}/*/{SPEC}"))
    found = [str(p) for p in folders if first_collapse(read_run(p).events) is not None]
    if not found:
        raise UsageError(
            f"{place}", f"none of its {len(folders)} runs has a collapse in events.jsonl",
            "a run of it with --onset STEP, to name a collapse by hand",
        )  # fmt: skip
    return found


def _done(folder: Path, run: RunSpec) -> bool:
    path = folder / RUNS / run.run_id / RESULT
    return path.exists() and RunResult.model_validate_json(path.read_text(encoding="utf-8")).status != "infra_failed"


def _show(plan: RecoveryPlan, planned: list[PlannedRun], parallel: int, folder: Path, *, as_json: bool) -> int:
    """The plan and its cost; nothing is written."""
    left = sum(not r.done for r in planned)
    seconds = plan.seconds * left / len(planned) / parallel
    cost = {"attempts": len(planned), "todo": left, "seconds": seconds, "checkpoint_bytes": plan.bytes_each}
    if as_json:
        print(json.dumps({"folder": str(folder), "plan": plan.spec.model_dump(mode="json"), "cost": cost}))
        return 0
    print(f"{plan.spec.name}  (nothing is run or written)")
    for i, e in enumerate(plan.spec.episodes):
        print(
            f"episode {i}: {e.run}: {e.type}, onset {e.onset}, confirmed {e.confirm}\n"
            f"  validation {e.base:.3f} at first, {e.best:.3f} at best; to reach: {e.best - e.tolerance:.3f}; "
            f"{e.steps} steps each\n"
            f"  checkpoints: {', '.join(f'{k} {v}' for k, v in e.checkpoints.items())}"
        )
        if e.in_force:
            print(f"  in force at the onset, and kept: {', '.join(e.in_force)}")
    counts = {r: sum(a.remedy == r for a in plan.spec.attempts) for r in plan.spec.remedies}
    for remedy, count in counts.items():
        print(f"  {remedy:17} {plan.spec.remedies[remedy]}: {count} attempts")
    for s in plan.spec.skipped:
        print(f"  not for episode {s.episode}: {s.remedy}: {s.why}")
    print(
        f"{len(planned)} attempts, {left} to do, roughly {duration(seconds)} with {parallel} at a time; "
        f"{human(plan.bytes_each)} of disk per attempt under way and per recovered one"
    )
    return 0
