"""The controller of a search: one Optuna study per algorithm, trials as ordinary runs averaged over tuning seeds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.core.ablation import TRIALS, Trials
from harness.core.errors import UsageError
from harness.core.ports import Executor, RunState
from harness.core.resolve import resolve_algorithm
from harness.core.results import write_atomic, write_study_spec
from harness.core.search import Objective, Searched, SearchRecord
from harness.core.spec import ArmSpec, StudySpec, stable_hash
from harness.study.compare import POLL_S, PlannedRun, plan_runs
from harness.study.evidence import RunFacts, attributes, cost_so_far, mean_of, run_facts
from harness.study.sampling import FLOOR, distribution, make_pruner, make_sampler, seen
from harness.study.spaces import LR, LR_CHECK, arm_of, defaults
from harness.study.spending import Limits
from harness.study.trials import (
    Heart,
    ask,
    file_of,
    left_running,
    note,
    open_study,
    predecessors,
    resumed,
    storage_errors,
)

RETRIES = 2  # of a run that died, before its trial fails
DIRECTIONS: Mapping[Objective, Literal["maximize", "minimize"]] = {
    "score": "maximize", "instability": "minimize", "sampled_tokens": "minimize",
}  # fmt: skip
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
DIED = ("failed", "cancelled")  # cancelled: stopped by somebody else; an interrupt of ours ends the loop before


@dataclass(slots=True, kw_only=True)
class Running:
    """A trial under way."""

    trial: Trial
    runs: list[PlannedRun]
    tries: dict[str, int] = field(default_factory=dict)  # run id -> times it was started again
    reported: set[int] = field(default_factory=set)  # per cent of the budget at which the storage knows the score


class Search:
    """The trials of one algorithm."""

    def __init__(
        self, url: str, folder: Path, record: SearchRecord, searched: Searched, limits: Limits | None = None
    ) -> None:
        self._url, self._record, self._searched, self._limits = url, record, searched, limits or Limits()
        self._folder = folder / searched.folder
        self._template = trial_study(record, searched)
        self._running: list[Running] = []
        self._failed = 0  # trials of this command that failed for good
        with storage_errors(url):
            identity = stable_hash([
                [d.model_dump(mode="json") for d in searched.space], self._template.hash, record.objectives,
                record.sampler, record.sampler_seed, record.memory_gib, record.kl_limit, record.pruner,
            ])  # fmt: skip
            directions = [DIRECTIONS[o] for o in record.objectives]
            self.study = open_study(url, searched.optuna_study, directions, identity, self._enqueue_first)
            self.study.pruner = make_pruner(record.pruner)
            self._heart = Heart(self.study)
            self._go_on()

    def _enqueue_first(self, study: optuna.Study) -> None:
        """The defaults and their learning rates."""
        if len(self._record.objectives) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(self._record.objectives))
        known = {t.user_attrs.get("what") for t in study.get_trials(deepcopy=False)}
        for what, params in self._first():
            if what not in known:
                study.enqueue_trial(params, user_attrs={"what": what})

    def _go_on(self) -> None:
        """Trials of an ended controller of a file go on; failed ones come again, where no other controller is at it."""
        for left in left_running(self.study, self._url):
            if len(left.params) == len(self._searched.space):
                self._start(resumed(self.study, left))
            else:  # its controller ended before all parameters were chosen
                self.study.tell(left.number, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        again = {number for t in trials for number in predecessors(t)}
        alone = file_of(self._url) is not None or not any(t.state == TrialState.RUNNING for t in trials)
        for t in trials if alone else ():
            params = {**t.system_attrs.get("fixed_params", {}), **t.params}
            whole = len(params) == len(self._searched.space) and "surplus" not in t.user_attrs
            if t.state == TrialState.FAIL and t.number not in again and whole:
                self.study.enqueue_trial(params, user_attrs={**t.user_attrs, "retry_of": t.number})

    def _first(self) -> list[tuple[str, dict[str, Any]]]:
        recipe, space = self._record.final.recipe, self._searched.space
        start = defaults(self._searched.arm, space, recipe)
        found = [("defaults", start)]
        for d in space:
            if d.path == LR and not d.values:
                rates = [start[LR] * factor for factor in LR_CHECK]
                found += [(f"lr x {f:.2g}", {**start, LR: r}) for f, r in zip(LR_CHECK, rates, strict=True)
                          if float(d.low or 0) <= r <= float(d.high or 0)]  # fmt: skip
        return found

    @property
    def name(self) -> str:
        """The arm that is searched."""
        return self._searched.arm.name

    @property
    def url(self) -> str:
        """Of its storage."""
        return self._url

    @property
    def folder_name(self) -> str:
        """Of its trials, inside the search's folder."""
        return self._searched.folder

    @property
    def complete(self) -> list[FrozenTrial]:
        """Finished trials."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    @property
    def unfinished(self) -> list[PlannedRun]:
        """Runs of the trials under way."""
        return [run for r in self._running for run in r.runs if not run.done]

    @property
    def _taken(self) -> list[int]:
        """Numbers of the trials that count against the budget, other controllers' included."""
        return [t.number for t in self.study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING))]

    def busy(self, states: Mapping[str, RunState]) -> int:
        """Runs of ours that have not ended."""
        return sum(states.get(r.spec.run_id) != "done" for r in self.unfinished)

    def wants(self) -> bool:
        """Whether another trial may be asked for."""
        return len(self._taken) + self._failed < self._record.trials and not self._spent()

    def over(self) -> bool:
        """Whether every trial has ended, those of other controllers too."""
        if self._running or self.wants():
            return False
        return file_of(self._url) is not None or not self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _spent(self) -> bool:
        """Whether the trials have used up what the command line allows each algorithm."""
        if self._limits == Limits():
            return False
        trials = self.study.get_trials(deepcopy=False, states=ENDED)
        used = {key: sum(t.user_attrs.get(key) or 0 for t in trials) for key in ("sampled_tokens", "seconds")}
        return self._limits.exceeded(used) is not None

    def ask(self) -> list[PlannedRun]:
        """The runs of the next trial; they are resumable from here on, whatever happens to this process."""
        self.study.sampler = make_sampler(self._record, len(self.study.get_trials(deepcopy=False)))
        trial = ask(self.study, {d.path: distribution(d) for d in self._searched.space})
        if (
            file_of(self._url) is None and trial.number in sorted(self._taken)[self._record.trials :]
        ):  # two controllers asked for the last one
            note(trial, {"surplus": True})
            self.study.tell(trial, state=TrialState.FAIL)
            return []
        return self._start(trial)

    def adopted(self) -> list[PlannedRun]:
        """Runs of trials that an ended controller left behind."""
        return self.unfinished

    def _start(self, trial: Trial) -> list[PlannedRun]:
        name = trial.user_attrs.get("arm") or trial_name(trial.number)  # one that comes again keeps its runs
        arm = arm_of(self._searched.arm, trial.params, name, self._record.final.recipe)
        runs = plan_runs(self._template.model_copy(update={"arms": (arm,), "reference_arm": arm.name}), self._folder)
        note(trial, {"arm": arm.name, "planned_runs": [r.spec.run_id for r in runs], "folder": str(self._folder)})
        known = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        self._running.append(Running(trial=trial, runs=runs, reported=known))
        return runs

    def write(self) -> None:
        """study.yaml and trials.json of the trials so far: a study like any other, for reports and the mirror."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if "arm" in t.user_attrs]
        if not trials:
            return
        recipe = self._record.final.recipe
        arms = {t.user_attrs["arm"]: arm_of(self._searched.arm, t.params, t.user_attrs["arm"], recipe) for t in trials}
        update = {"arms": tuple(arms.values()), "reference_arm": next(iter(arms))}
        write_study_spec(self._folder, self._template.model_copy(update=update))
        numbers = {t.user_attrs["arm"]: t.number for t in trials}
        record = Trials(storage=self._url, study=self.study.study_name, trials=numbers)
        write_atomic(self._folder / TRIALS, record.model_dump_json(indent=2) + "\n")

    def settle(self, states: Mapping[str, RunState], executor: Executor) -> None:
        """Starts dead runs again, and tells every trial whose runs have all ended."""
        self._heart.beat([r.trial for r in self._running])
        for running in list(self._running):
            if self._record.pruner != "none" and self._lags(running):
                self._prune(running, executor)
                continue
            now = {r.spec.run_id: "done" if r.done else states.get(r.spec.run_id, "waiting") for r in running.runs}
            if all(s == "done" or (s in DIED and not self._may_restart(running, i)) for i, s in now.items()):
                self._tell(running)
            else:
                self._restart(running, states, executor)

    def _lags(self, running: Running) -> bool:
        """Reports what is new, and asks the pruner; a run that has ended decides nothing any more."""
        for percent, score in seen(running.runs, self._template.eval.points).items():
            if percent not in running.reported:
                running.reported.add(percent)
                running.trial.report(score, percent)
        last = max(running.reported, default=0)
        return FLOOR <= last < 100 and running.trial.should_prune()

    def _prune(self, running: Running, executor: Executor) -> None:
        last = max(running.reported)
        score = seen(running.runs, self._template.eval.points)[last]
        for run in running.runs:
            executor.cancel(run.spec.run_id)
        note(running.trial, {
            "outcome": "pruned", "prune_reason": self._record.pruner, "pruned_at": last,
            "reason": f"{self._record.pruner}: {score:.3f} at {last} % of the budget",
            **cost_so_far([r.folder for r in running.runs]),
        })  # fmt: skip
        self._running.remove(running)
        self.study.tell(running.trial, state=TrialState.PRUNED)

    def _may_restart(self, running: Running, run_id: str) -> bool:
        return running.tries.get(run_id, 0) < RETRIES

    def _restart(self, running: Running, states: Mapping[str, RunState], executor: Executor) -> None:
        for run in running.runs:
            run_id = run.spec.run_id
            if not run.done and states.get(run_id) in DIED and self._may_restart(running, run_id):
                running.tries[run_id] = running.tries.get(run_id, 0) + 1
                executor.submit(run.spec, run.folder)

    def _tell(self, running: Running) -> None:
        facts = [run_facts(r.folder) for r in running.runs]
        known = [f for f in facts if f is not None]
        values = objective_values(known, self._record.objectives) if len(known) == len(facts) else None
        self._running.remove(running)
        trial = running.trial
        if values is None:
            self._failed += 1
            note(trial, {"reason": "a run failed for reasons outside the algorithm, more than once"})
            self.study.tell(trial, state=TrialState.FAIL)
            return
        note(trial, attributes(known))
        for key, value in constraints(known, self._record.memory_gib, self._record.kl_limit).items():
            trial.set_constraint(key, value)
        self.study.tell(trial, values)


def trial_name(number: int) -> str:
    """The arm of a trial."""
    return f"trial {number}"


def trial_study(record: SearchRecord, searched: Searched) -> StudySpec:
    """What the runs of all trials share: tuning seeds, a stop at a confirmed collapse, a final evaluation no larger
    than the others, since trials are judged on the validation split."""
    final = record.final
    small = {"final_prompts": min(final.eval.final_prompts, final.eval.prompts), "points": max(1, final.eval.points)}
    return final.model_copy(
        update={
            "name": f"{record.name}-{searched.folder}", "arms": (searched.arm,), "seeds": record.tuning_seeds,
            "reference_arm": searched.arm.name, "eval": final.eval.model_copy(update=small), "skipped": (),
            "monitor": final.monitor.model_copy(update={"on_collapse": "stop"}),
        }
    )  # fmt: skip


def objective_values(facts: Sequence[RunFacts], objectives: Sequence[Objective]) -> list[float] | None:
    """Means over seeds: last validation score, instability, sampled tokens. Collapsed runs keep their real score."""
    a = attributes(facts)
    of = {"score": mean_of(a["validation"]), "instability": a["instability"],
          "sampled_tokens": a["sampled_tokens"] / max(1, len(facts))}  # fmt: skip
    values = [of[o] for o in objectives]
    return None if any(v is None for v in values) else [float(v) for v in values if v is not None]


def constraints(facts: Sequence[RunFacts], memory_gib: float | None, kl_limit: float | None) -> dict[str, float]:
    """Violated where positive: the share of collapsed seeds (-1 for none); memory and KL above their limits."""
    found = {"collapse": sum(f.collapsed for f in facts) / len(facts) or -1.0}
    if memory_gib is not None:
        found["memory_gib"] = max((f.memory_gib or 0.0) for f in facts) - memory_gib
    if kl_limit is not None:
        found["kl"] = max((f.kl or 0.0) for f in facts) - kl_limit
    return found


def run_trials(
    search: Search,
    executor: Executor,
    parallel: int,
    watch: Callable[[Search, Mapping[str, RunState]], None],
    pause_s: float = POLL_S,
) -> bool:
    """Asks, runs and tells until the trials are done; true where it was interrupted, with everything resumable.

    What can be derived from the trials is written once, at the end, so that a trial costs the same early and late.
    """
    with storage_errors(search.url):
        for run in search.adopted():
            executor.submit(run.spec, run.folder)
        try:
            while True:
                states = executor.poll()
                search.settle(states, executor)
                watch(search, states)
                if search.over():
                    return False
                while search.busy(states) < parallel and search.wants():  # in this order: only the second asks storage
                    for run in search.ask():
                        if not run.done:
                            executor.submit(run.spec, run.folder)
                time.sleep(pause_s)
        except KeyboardInterrupt:
            return True
        finally:
            search.write()


def ranked(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> list[FrozenTrial]:
    """Feasible trials, best first by score; where there are several objectives, those of the Pareto front first."""
    feasible = [t for t in trials if all(v <= 0 for v in t.constraints.values())]
    by_score = sorted(feasible, key=lambda t: (-_score(t, objectives), t.number))
    if len(objectives) == 1:
        return by_score
    front = [t for t in by_score if not any(_dominates(o, t, objectives) for o in feasible)]
    return front + [t for t in by_score if t not in front]


def _score(trial: FrozenTrial, objectives: Sequence[Objective]) -> float:
    return float(trial.values[objectives.index("score")])


def _dominates(a: FrozenTrial, b: FrozenTrial, objectives: Sequence[Objective]) -> bool:
    sign = [1 if DIRECTIONS[o] == "maximize" else -1 for o in objectives]
    gain = [s * (x - y) for s, x, y in zip(sign, a.values, b.values, strict=True)]
    return bool(min(gain) >= 0 and max(gain) > 0)


def final_study(record: SearchRecord, searches: Sequence[Search]) -> tuple[StudySpec, dict[str, dict[str, Any]]]:
    """The re-evaluation on fresh seeds: every default, and the top configurations of every search beside it.

    Also arm -> what it is: searched arm, trial, tuning score. Where no trial is feasible only the defaults are run.
    """
    arms: list[ArmSpec] = []
    what: dict[str, dict[str, Any]] = {}
    for searched, search in zip(record.searched, searches, strict=True):
        arms.append(searched.arm)
        trials = search.complete
        first = next((t for t in trials if t.user_attrs.get("what") == "defaults"), None)
        what[searched.arm.name] = _origin(searched, first, record.objectives)
        seen = [defaults(searched.arm, searched.space, record.final.recipe)]
        for trial in ranked(trials, record.objectives):
            if trial.params not in seen and len(seen) <= record.top:
                seen.append(trial.params)
                name = f"{searched.arm.name} tuned ({trial_name(trial.number)})"
                arms.append(arm_of(searched.arm, trial.params, name, record.final.recipe))
                what[name] = _origin(searched, trial, record.objectives)
    return record.final.model_copy(update={"arms": tuple(arms)}), what


def _origin(searched: Searched, trial: FrozenTrial | None, objectives: Sequence[Objective]) -> dict[str, Any]:
    return {
        "of": searched.arm.name,
        "trial": trial.number if trial else None,
        "tuning_score": _score(trial, objectives) if trial else None,
        "params": dict(trial.params) if trial else None,
    }


def check_search(record: SearchRecord) -> None:
    """Refuses a search that could not be believed or would not end."""
    overlap = sorted(set(record.tuning_seeds) & set(record.final.seeds))
    if overlap:
        raise UsageError(
            f"tuning seeds {list(record.tuning_seeds)} and test seeds {list(record.final.seeds)}",
            f"they share {overlap}, so a configuration would be judged on what it was chosen by",
            "--tuning-seeds 1000,1001,1002 and --seeds 0,1,2,3,4",
        )  # fmt: skip
    if "score" not in record.objectives or len(set(record.objectives)) < len(record.objectives):
        raise UsageError(f"objectives {list(record.objectives)}", "score is one of them, and each stands once",
                         "--objectives score, or score,instability,sampled_tokens")  # fmt: skip
    if record.pruner != "none" and len(record.objectives) > 1:
        raise UsageError(
            f"--prune {record.pruner} with {len(record.objectives)} objectives",
            "which of two trials lags is not defined there", "--objectives score, or --prune none",
        )  # fmt: skip
    for searched in record.searched if record.kl_limit is not None else ():
        algorithm = resolve_algorithm(searched.arm.algorithm, searched.arm.overrides, record.final.recipe)
        if "reference" not in algorithm.needs:
            raise UsageError(
                f"--kl-limit with {searched.arm.name}", "it has no reference policy, so its KL is not known",
                "an arm with a KL penalty, e.g. --roster published, or no --kl-limit",
            )  # fmt: skip
    if record.final.eval.points < 1:
        raise UsageError("eval.points = 0", "trials are judged on the validation split during training",
                         "-s eval.points=5")  # fmt: skip


def trial_rows(search: Search) -> list[dict[str, Any]]:
    """Every trial of a search as data for the report."""
    return [
        {
            "number": t.number, "state": t.state.name, "params": dict(t.params), "values": t.values,
            "constraints": dict(t.constraints), "what": t.user_attrs.get("what"),
            **{k: t.user_attrs.get(k) for k in ("outcome", "collapsed", "event_type", "onset_step", "instability",
                                                "sampled_tokens", "seconds", "runs", "reason", "validation",
                                                "prune_reason", "pruned_at")},
        }
        for t in search.study.get_trials(deepcopy=False)
    ]  # fmt: skip


def final_rows(folder: Path, spec: StudySpec, what: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every arm of the re-evaluation with the scores of its finished runs by seed, for the report."""
    facts: dict[str, list[RunFacts]] = {a.name: [] for a in spec.arms}
    for run in plan_runs(spec, folder):
        known = run_facts(run.folder)
        if known is not None:
            facts[run.spec.arm].append(known)
    return [
        {
            "arm": arm, **what[arm], "collapsed": sum(f.collapsed for f in known),
            "test": {str(f.seed): f.test for f in known if f.test is not None},
            "validation": {str(f.seed): f.validation for f in known if f.validation is not None},
        }
        for arm, known in facts.items()
    ]  # fmt: skip
