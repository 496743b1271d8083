"""The controller of an ablation: Optuna enumerates and stores its cells, each a trial; its runs are ordinary ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from harness.core.ablation import TRIALS, Ablation, Trials
from harness.core.errors import UsageError
from harness.core.ports import RunState
from harness.core.results import write_atomic
from harness.core.spec import stable_hash
from harness.study.compare import PlannedRun
from harness.study.evidence import RunFacts, attributes, mean_of, run_facts
from harness.study.trials import GRACE_S, Heart, ask, file_of, left_running, note, open_study, resumed, storage_errors

ENDED = ("done", "failed", "cancelled")
LIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)


class CellTrials:
    """The cells of a design as trials of one Optuna study; tells a trial when the last of its runs has ended.

    A complete design is a grid over its factors, any other one a grid over its cells (`GridSampler` enumerates both).
    Arms beside the design are runs without a trial.
    """

    def __init__(self, url: str, name: str, record: Ablation, planned: Sequence[PlannedRun]) -> None:
        self._url, self._record = url, record
        self._runs: dict[str, list[PlannedRun]] = {arm: [] for arm in record.cells}
        for run in planned:
            if run.spec.arm in self._runs:
                self._runs[run.spec.arm].append(run)
        with storage_errors(url):
            identity = stable_hash([_identity(record), sorted(r.spec.hash for r in planned)])
            self._study = open_study(url, name, ["maximize"], identity)
            self._heart = Heart(self._study)
            self._heart.beat(())
            self._space = _space(record)
            self._open: dict[str, Trial] = {}
            self._numbers: dict[str, int] = {}
            self._study.sampler = optuna.samplers.GridSampler(self._space, seed=0)
            self._ask()
            self._study.sampler = optuna.samplers.RandomSampler()  # a grid would stop `optimize`, which nobody called

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        return self._study

    def write(self, folder: Path) -> None:
        """trials.json: the way from an arm to its trial."""
        record = Trials(storage=self._url, study=self._study.study_name, trials=self._numbers)
        write_atomic(folder / TRIALS, record.model_dump_json(indent=2) + "\n")

    def settle(self, states: Mapping[str, RunState]) -> None:
        """Tells every trial whose runs have all ended; a run that failed for good makes it FAIL, to be asked again."""
        with storage_errors(self._url):
            self._heart.beat([*self._open.values()])
            for arm in list(self._open):
                runs = self._runs[arm]
                if all(r.done or states.get(r.spec.run_id) in ENDED for r in runs):
                    self._tell(arm, [run_facts(r.folder) for r in runs], states)

    def _tell(self, arm: str, facts: Sequence[RunFacts | None], states: Mapping[str, RunState]) -> None:
        known = [f for f in facts if f is not None]
        score = mean_of([f.test for f in known])
        if len(known) < len(facts) or score is None:
            if any(states.get(r.spec.run_id) == "cancelled" for r in self._runs[arm]):
                return  # interrupted: the trial goes on with the next command
            trial = self._open.pop(arm)
            note(trial, {"reason": "a run failed for reasons outside the algorithm"})
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial = self._open.pop(arm)
        note(trial, attributes(known))
        collapsed = sum(f.collapsed for f in known) / len(known)
        trial.set_constraint("collapse", collapsed or -1.0)
        self._study.tell(trial, score)

    def _ask(self) -> None:
        """One live trial per cell: those of an ended controller go on, failed ones are asked again."""
        cells = {tuple(str(v) for v in self._params(arm).values()): arm for arm in self._record.cells}
        trials = self._study.get_trials(deepcopy=False)
        for left in left_running(self._study, self._url):
            if "arm" in left.user_attrs:
                self._open[left.user_attrs["arm"]] = resumed(self._study, left)
            else:  # asked for, but not yet named when its controller ended
                self._study.tell(left.number, state=TrialState.FAIL)
        self._refuse_a_second(trials)
        named = {t.user_attrs["arm"]: t for t in trials if "arm" in t.user_attrs and t.state in LIVE}
        if trials:  # the grid comes by once; what is missing later is put into the queue
            for arm in (a for a in cells.values() if a not in named):
                self._study.enqueue_trial(self._params(arm), user_attrs={"arm": arm})
        self._numbers = {arm: t.number for arm, t in named.items() if t.state != TrialState.WAITING}
        dimensions = {name: CategoricalDistribution(levels) for name, levels in self._space.items()}
        while len(self._numbers) < len(cells):
            trial = ask(self._study, dimensions)
            arm = cells[tuple(str(trial.params[name]) for name in self._space)]
            note(trial, {"arm": arm, "setting": self._record.cells[arm]})
            self._open[arm] = trial
            self._numbers[arm] = trial.number

    def _refuse_a_second(self, trials: Sequence[FrozenTrial]) -> None:
        """A design has one controller at a time: its cells are handed out at once."""
        held = [t for t in trials if t.state == TrialState.RUNNING] if file_of(self._url) is None else []
        if held:
            raise UsageError(
                f"storage {self._url}", f"another controller holds {len(held)} cells of {self._study.study_name}",
                f"wait until it has ended, or {GRACE_S} seconds after it died; or another --name",
            )  # fmt: skip

    def _params(self, arm: str) -> dict[str, str]:
        return dict(self._record.cells[arm]) if "cell" not in self._space else {"cell": arm}


def _identity(record: Ablation) -> dict[str, Any]:
    """The design as data, without what levels have had only since: an older ablation can be continued."""
    data = record.model_dump(mode="json")
    for factor in (*data["design"]["factors"], *data["design"]["stress"]):
        factor["levels"] = [{k: v for k, v in level.items() if v or k != "backend"} for level in factor["levels"]]
    return data


def _space(record: Ablation) -> dict[str, list[str]]:
    """The grid: factors where every combination is a cell, else the cells themselves."""
    factors = {f.name: [level.name for level in f.levels] for f in (*record.design.factors, *record.design.stress)}
    complete = prod(len(levels) for levels in factors.values()) == len(record.cells)
    return factors if complete else {"cell": list(record.cells)}
