"""A recovery study: collapsed runs x start points x remedies x seeds -> runs like any others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, cast, get_args

from harness import NUMERICS_VERSION
from harness.core.checkpoints import listed, name_of, size
from harness.core.collapse import Episode, best_step, declared, first_collapse
from harness.core.errors import UsageError, near
from harness.core.ports import TaskInfo
from harness.core.recovery import AttemptSpec, EpisodeSpec, RecoverySpec, SkippedAttempt, StartPoint
from harness.core.registry import build_task
from harness.core.resolve import resolve
from harness.core.results import CHECKPOINTS, RunFolder, read_run
from harness.core.retention import pinned
from harness.core.spec import Budget, CheckpointSpec, ModelSpec, RunSpec, Spec, StartSpec, stable_hash
from harness.stats.estimate import clustered_mean
from harness.study.arms import arm_names, display_name
from harness.study.remedies import REMEDIES, Case, values, with_recipe

LONG_RUN = 150  # steps; METHOD's counts are for runs of this length and shrink with shorter ones
REMAINING, SURVIVE, MARGIN_OF_SCORE = 100, 50, 0.02
MIN_EVALS = 10  # during an attempt, at least
FIRST_SEED = 101  # apart from the seeds of studies
START_POINTS: tuple[StartPoint, ...] = get_args(StartPoint)
WORDS: Mapping[StartPoint, str] = {"last_healthy": "healthy", "half": "half way", "collapsed": "collapsed"}


class RecoveryChoices(Spec):
    """What the user chooses: the command line's options, or a YAML file with `type: recovery`."""

    type: Literal["recovery"] = "recovery"
    runs: tuple[str, ...]  # run folders, or studies: all their collapsed runs
    onset: int | None = None  # a collapse named by hand; None: the first one in events.jsonl
    confirm: int | None = None  # step at which that was certain; None: the onset
    starts: tuple[str, ...] = ("last_healthy", "collapsed")
    remedies: tuple[str, ...] | None = None  # None: all that apply
    seeds: tuple[int, ...] = (FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2)
    steps: int | None = None  # of every attempt; None: what the run had left, at least 100 (fewer for short runs)
    other: str | None = None  # the arm of the remedy `other_algorithm`
    margin: int | None = None  # steps from the last healthy checkpoint to the onset; None: the run's own
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What is known about models, from the room that knows them."""

    recipe_of: Callable[[str], Mapping[str, Any]]
    pinned: Callable[[ModelSpec, int], ModelSpec]  # the initial weights that a seed chose, whatever the seed
    longest: Callable[[RunSpec], int | None]  # longest response for which the prompts leave room


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """A checked recovery study with its runs, in the order of `spec.attempts`."""

    spec: RecoverySpec
    runs: tuple[RunSpec, ...]
    seconds: float  # of all attempts one after the other, at the speed of the collapsed runs
    bytes_each: int  # size of an attempt's checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapsed:
    """A collapsed run and where to start from."""

    run: RunFolder
    episode: Episode
    points: Mapping[StartPoint, int]
    total: int  # steps of its whole budget
    in_force: RunSpec  # its spec with the schedule's values at the onset, and no schedule
    changed: tuple[str, ...]

    @property
    def pace(self) -> float:
        """Seconds per step."""
        last = self.run.steps[-1]
        return float(last["wallclock_s"]) / float(last["step"])


def plan_recovery(choices: RecoveryChoices, models: Models) -> RecoveryPlan:
    """Reads the collapsed runs and lists the attempts; refuses what could not be judged or run."""
    _check(choices)
    named = choices.remedies is not None
    chosen = choices.remedies or tuple(REMEDIES)
    episodes: list[EpisodeSpec] = []
    attempts: list[AttemptSpec] = []
    runs: list[RunSpec] = []
    skipped: list[SkippedAttempt] = []
    donors = [read_collapsed(Path(p), choices) for p in choices.runs]
    for index, donor in enumerate(donors):
        episode = episode_of(donor, choices)
        episodes.append(episode)
        info = _task_info(donor.run.spec)
        prefix = f"{donor.run.spec.arm} s{donor.run.spec.seed} " if len(donors) > 1 else ""
        for remedy in chosen:
            try:
                found = _attempts(donor, episode, remedy, choices, models, info, prefix)
            except UsageError as error:
                if named:
                    raise UsageError(f"remedy {remedy} for {donor.run.path}", error.why, error.instead) from None
                skipped.append(SkippedAttempt(episode=index, remedy=remedy, why=error.why))
                continue
            for point, spec in found:
                runs.append(spec)
                attempts.append(
                    AttemptSpec(run_id=spec.run_id, episode=index, start=point, remedy=remedy, seed=spec.seed)
                )
    if not runs:
        raise UsageError("no attempt is left", "; ".join(s.why for s in skipped), "other remedies")
    seconds = sum(
        donors[a.episode].pace * episodes[a.episode].steps * _tokens_ratio(donors[a.episode], r)
        for a, r in zip(attempts, runs, strict=True)
    )
    order = sorted(range(len(runs)), key=lambda i: runs[i].seed)  # whole seeds first, as in a comparison
    return RecoveryPlan(
        spec=RecoverySpec(
            name=choices.name or _name(donors, episodes, runs),
            episodes=tuple(episodes),
            attempts=tuple(attempts[i] for i in order),
            skipped=tuple(skipped),
            remedies={name: _words(name, choices.other) for name in chosen},
            seeds=choices.seeds,
        ),
        runs=tuple(runs[i] for i in order),
        seconds=seconds,
        bytes_each=max(size(d.run.path / CHECKPOINTS / name_of(s)) for d in donors for s in d.points.values()),
    )


def _tokens_ratio(donor: Collapsed, spec: RunSpec) -> float:
    return spec.recipe.max_new_tokens / donor.in_force.recipe.max_new_tokens


def _words(remedy: str, other: str | None) -> str:
    words = REMEDIES[remedy][0]
    return f"{words} ({display_name(other) if other else 'GSPO or GRPO'})" if remedy == "other_algorithm" else words


def _check(choices: RecoveryChoices) -> None:
    for remedy in choices.remedies or ():
        if remedy not in REMEDIES:
            raise UsageError(f"remedy {remedy!r}", "there is no such remedy", near(remedy, REMEDIES))
    for point in choices.starts:
        if point not in START_POINTS:
            raise UsageError(f"start point {point!r}", "there is no such start point", near(point, START_POINTS))
    if choices.other is not None and choices.other not in arm_names():
        raise UsageError(f"other algorithm {choices.other!r}", "no such arm", near(choices.other, arm_names()))
    for what, given in (("seeds", choices.seeds), ("starts", choices.starts), ("runs", choices.runs)):
        if not given or len(set(given)) < len(given):
            raise UsageError(f"{what} {list(given)}", "it is empty or names something twice", "different ones")
    if choices.onset is not None and len(choices.runs) > 1:
        raise UsageError(f"onset {choices.onset} of {len(choices.runs)} runs", "it belongs to one run", "one run")
    if choices.confirm is not None and (choices.onset is None or choices.confirm < choices.onset):
        raise UsageError(
            f"confirm {choices.confirm}", "a collapse is certain at or after its onset", "--onset, and a later step"
        )


def read_collapsed(path: Path, choices: RecoveryChoices) -> Collapsed:
    """A finished run that collapsed, with the checkpoints its recovery starts from."""
    run = read_run(path)
    if run.result is None or run.result.status == "infra_failed":
        raise UsageError(f"{path}", "the run has not ended", "repeat the command that made it, then this one")
    last = run.steps[-1]["step"] if run.steps else 0
    if choices.onset is not None:
        episode = declared(choices.onset, choices.confirm)
        if not 1 <= episode.onset <= last or episode.confirm > last:
            raise UsageError(f"onset {episode.onset}", f"{path} has steps 1 to {last}", "a step of the run")
    else:
        found = first_collapse(run.events)
        if found is None:
            raise UsageError(
                f"{path}", "no collapse was confirmed in it: events.jsonl has no FATAL or COLLAPSE event",
                "a run that collapsed, or --onset STEP to name a collapse by hand",
            )  # fmt: skip
        episode = found
    if run.spec.seed in choices.seeds:
        raise UsageError(
            f"seed {run.spec.seed}", f"{path} had it, so a restart would only repeat what happened", "another seed"
        )
    margin = run.spec.checkpoints.margin if choices.margin is None else choices.margin
    steps = [int(p.name) for p in listed(path / CHECKPOINTS)]
    points = {role: step for role, step in pinned(steps, episode, margin).items() if role in choices.starts}
    for point in choices.starts:
        if point not in points:
            raise UsageError(
                f"{path}: no checkpoint to start from: {point}",
                f"the onset is step {episode.onset}, confirmed at {episode.confirm}; there are checkpoints of steps "
                f"{steps} (a run that ends without a collapse event drops those in between)",
                "the other start points (--starts), or the run again with --set checkpoints.ladder=always",
            )
    spec, changed = in_force(run, episode.onset)
    return Collapsed(
        run=run, episode=episode, points=points, total=_total_steps(run), in_force=spec, changed=changed
    )  # fmt: skip


def _total_steps(run: RunFolder) -> int:
    """Rollout steps that the run's budget is worth."""
    if run.spec.budget.steps is not None and run.spec.budget.sampled_tokens is None:
        return run.spec.budget.steps
    last = run.steps[-1]
    step: int = last["step"]
    return max(step, ceil(step / (last["budget_fraction"] or 1.0)))


def in_force(run: RunFolder, onset: int) -> tuple[RunSpec, tuple[str, ...]]:
    """The run's settings at the onset, as settings of a run without a schedule; and what the schedule had changed."""
    spent = [row["budget_fraction"] or 0.0 for row in run.steps if row["step"] < onset]
    fraction = spent[-1] if spent else 0.0
    spec = run.spec.model_copy(update={"schedule": ()})
    changed: dict[str, Any] = {}
    for entry in run.spec.schedule:
        if entry.at <= fraction:
            changed |= entry.overrides
    recipe = {k.removeprefix("recipe."): v for k, v in changed.items() if k.startswith("recipe.")}
    spec = with_recipe(spec, **recipe) if recipe else spec
    spec = values(spec, {k: v for k, v in changed.items() if not k.startswith("recipe.")})
    return spec, tuple(f"{path} = {value}" for path, value in changed.items())


def shrunk(count: int, total: int) -> int:
    """METHOD's counts for a run of `total` steps: in proportion below 150."""
    return max(1, ceil(count * min(1.0, total / LONG_RUN)))


def episode_of(donor: Collapsed, choices: RecoveryChoices) -> EpisodeSpec:
    """What attempts are judged by: scores from before the collapse, and how far past the old onset they must last."""
    run, episode = donor.run, donor.episode
    evals = {e.step: e for e in run.evals if e.split == "validation"}
    top = best_step(run.evals, before=episode.onset - 1)
    if top is None:
        raise UsageError(
            f"{run.path}", "it has no validation score from before its onset", "a run with eval.points > 0"
        )
    score, se = clustered_mean([q.correct for q in evals[top].questions], [q.n for q in evals[top].questions])
    survive = episode.confirm - episode.onset + shrunk(SURVIVE, donor.total)
    earliest = min(donor.points.values())
    needed = episode.onset + survive - earliest
    left = donor.total - earliest
    steps = choices.steps if choices.steps is not None else max(left, shrunk(REMAINING, donor.total), needed)
    if steps < needed:
        raise UsageError(
            f"--steps {steps}",
            f"a recovery must last {survive} steps past the onset at step {episode.onset}, and attempts start at step "
            f"{earliest}: none could ever count as recovered",
            f"--steps {needed} or more, or none",
        )
    return EpisodeSpec(
        run=str(run.path),
        arm=run.spec.arm,
        seed=run.spec.seed,
        type=episode.type,
        onset=episode.onset,
        confirm=episode.confirm,
        base=evals[min(evals)].score,
        best=score,
        tolerance=max(MARGIN_OF_SCORE, se or 0.0),
        checkpoints=dict(donor.points),
        steps=steps,
        survive=survive,
        in_force=donor.changed,
    )


def _attempts(
    donor: Collapsed,
    episode: EpisodeSpec,
    remedy: str,
    choices: RecoveryChoices,
    models: Models,
    info: TaskInfo,
    prefix: str,
) -> list[tuple[StartPoint, RunSpec]]:
    """The attempts with one remedy; UsageError where it cannot be applied."""
    words, change = REMEDIES[remedy]
    found = []
    for point in choices.starts:
        point = cast(StartPoint, point)
        for seed in choices.seeds:
            case = Case(
                spec=_restart(donor, episode, point, seed, models),
                donor=donor.run.spec,
                start_step=donor.points[point],
                last_step=donor.run.steps[-1]["step"],
                steps=episode.steps,
                train_size=info.sizes.get("train"),
                recipe=models.recipe_of(donor.run.spec.model.name),
                longest=models.longest(donor.run.spec),
                other=choices.other,
            )
            spec = change(case)
            title = display_name(choices.other or spec.algorithm) if remedy == "other_algorithm" else words
            spec = spec.model_copy(update={"arm": f"{prefix}{WORDS[point]}: {title}"})
            resolve(spec)
            found.append((point, spec))
    return found


def _restart(donor: Collapsed, episode: EpisodeSpec, point: StartPoint, seed: int, models: Models) -> RunSpec:
    """A restart without a remedy: the same settings and remaining steps, another seed."""
    spec, step = donor.in_force, donor.points[point]
    total = step + episode.steps
    every = donor.total / max(1, spec.eval.points)  # steps between evaluations of the collapsed run
    points = ceil(total / max(1.0, min(every, episode.steps / MIN_EVALS)))
    held_out = {"points": points, "final_prompts": min(spec.eval.final_prompts, spec.eval.prompts)}
    return spec.model_copy(
        update={
            "numerics_version": NUMERICS_VERSION,
            "seed": seed,
            "model": models.pinned(spec.model, spec.seed),
            "budget": Budget(steps=total),
            "eval": spec.eval.model_copy(update=held_out),
            "start": StartSpec(run=str(donor.run.path), checkpoint=str(step)),
            "checkpoints": CheckpointSpec(newest=1, every=0, best=False),
        }
    )


def _task_info(spec: RunSpec) -> TaskInfo:
    info = build_task(spec.task.name, spec.task.params).info
    if info.data_sha256 != spec.task.data_sha256:
        raise UsageError(f"task {spec.task.name}", "the file has changed since the collapsed run", "the file as it was")
    return info


def _name(donors: Sequence[Collapsed], episodes: Sequence[EpisodeSpec], runs: Sequence[RunSpec]) -> str:
    """The same for the same choices, so that repeating a command continues it; other for another way of judging."""
    first = donors[0].run.run_id if len(donors) == 1 else f"{len(donors)}-episodes"
    judged = [e.model_dump(mode="json", exclude={"run"}) for e in episodes]
    return f"recover-{first}-{stable_hash([judged, sorted(r.run_id for r in runs)])[:6]}"
