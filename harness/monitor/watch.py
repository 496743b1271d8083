"""The monitor: a fold over the steps and evaluations of a run, whose state is plain JSON.

`update(state, row, evaluations) -> Seen(state, events, look)`. A run keeps the state in its checkpoints, and the same
fold replays a finished run folder or a CSV file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from harness.core.results import EventRecord
from harness.monitor.detectors import RULES
from harness.monitor.detectors.reward_collapse import risen
from harness.monitor.detectors.rule import Rule
from harness.monitor.machine import Change, Confirmation, Machine, hold, watch
from harness.monitor.onset import BACK, backdated
from harness.monitor.scores import BIG, Evaluation, Scores
from harness.monitor.series import ALWAYS, REWARD, TOKENS, Series, State, measured, number
from harness.monitor.severity import LAST_BEFORE, escalated, last_healthy
from harness.monitor.smooth import RewardTrack
from harness.monitor.view import EARLY, FULL, START, View, scaled

AROUND = 50  # steps of evidence kept on either side of an onset


class Monitor(State):
    """Everything the detectors remember, and the events so far."""

    horizon: int | None = None  # planned rollout steps T; None until the first row tells
    siblings: int | None = None
    reward_low: float | None = None  # of the task's range; None = unknown
    series: Series = Series()
    early: Series = Series()
    reward: RewardTrack = RewardTrack()
    scores: Scores = Scores()
    machines: dict[str, Machine] = Field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()
    notes: tuple[str, ...] = ()  # what was wrong with the input, once each

    @property
    def scale(self) -> float:
        """T / 150, at most 1; 1 where T is unknown."""
        return 1.0 if self.horizon is None else min(1.0, self.horizon / FULL)

    def view(self) -> View:
        """The newest step as rules see it."""
        return View(
            series=self.series, early=self.early, reward=self.reward, scores=self.scores, scale=self.scale,
            anchor=self.series.steps[-1], siblings=self.siblings, reward_low=self.reward_low,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one step or evaluation led to."""

    state: Monitor
    events: tuple[EventRecord, ...] = ()  # new or changed: confirmed, escalated, cleared
    look: bool = False  # a rule became suspicious or confirmed, so responses of this step are worth keeping


def columns(rules: Sequence[Rule] = RULES) -> tuple[str, ...]:
    """Every metric that a rule reads."""
    return tuple(dict.fromkeys((*ALWAYS, *(key for rule in rules for key in rule.watches))))


_COLUMNS = columns()
_STEPS = tuple(rule for rule in RULES if rule.source == "steps")
_SCORES = tuple(rule for rule in RULES if rule.source == "scores")


def update(
    state: Monitor,
    row: Mapping[str, Any] | None,
    evaluations: Sequence[Evaluation] = (),
    *,
    checkpoints: Sequence[int] = (),
) -> Seen:
    """The row, then the evaluations made after it; either may be missing. What cannot be read is noted and left out.

    `checkpoints` are the steps from which the run could be repeated.
    """
    before, look = state.events, False
    if row is not None:
        state, look = _stepped(state, row, checkpoints)
        state = _escalated(state)
    for evaluation in evaluations:
        state, looks = _evaluated(state, evaluation, checkpoints)
        state, look = _escalated(state), look or looks
    return Seen(state=state, events=_changed(before, state.events), look=look)


def _escalated(state: Monitor) -> Monitor:
    """After every evaluation of its own, so that several at once say what they would say one by one."""
    if not (state.scores.lost and state.events):
        return state
    events = escalated(state.events, state.scores, state.series.steps[-1])
    return state.model_copy(update={"events": events})


def close(state: Monitor) -> Monitor:
    """At the end of a run: the evidence of every event as far as it goes."""
    return state.model_copy(update={"events": tuple(_with_window(state, e) for e in state.events)})


def learned(state: Monitor) -> bool | None:
    """Whether the reward or a held-out score ever rose beyond noise; None where neither was measured."""
    rose = risen(state.view()) if state.series.steps else None
    if rose is None and not state.scores.points:
        return None
    return bool(rose) or state.scores.gained


def _changed(before: Sequence[EventRecord], after: Sequence[EventRecord]) -> tuple[EventRecord, ...]:
    """New events, and those that were escalated, cleared, or whose evidence is complete."""

    def told(e: EventRecord) -> Any:
        return e.severity, e.clear_step, len(e.metrics_window["step"])

    return tuple(e for i, e in enumerate(after) if i >= len(before) or told(e) != told(before[i]))


def _stepped(state: Monitor, row: Mapping[str, Any], checkpoints: Sequence[int]) -> tuple[Monitor, bool]:
    step = number(row.get("step"))
    last = state.series.steps[-1] if state.series.steps else None
    if step is None or step != int(step):
        return _noted(state, "a row without a whole-number step was left out"), False
    if last is not None and step <= last:
        return _noted(state, f"step {int(step)} after step {last} was left out: steps must rise"), False
    state = _extended(state, int(step), row)
    view = state.view()
    look = False
    for rule in _STEPS:
        state, change = _judged(state, rule, view, 1, checkpoints)
        look = look or (change in ("suspect", "confirmed") and rule.severity != "WARN")
    return state, look


def _extended(state: Monitor, step: int, row: Mapping[str, Any]) -> Monitor:
    values = measured(row, _COLUMNS)
    horizon = state.horizon
    fraction = number(row.get("budget_fraction"))
    if horizon is None and fraction is not None and 0.0 < fraction <= 1.0:
        horizon = max(1, round(step / fraction))
    found = state.model_copy(update={"horizon": horizon})
    first = state.early.steps[0] if state.early.steps else step
    if step - first + 1 <= scaled(EARLY, found.scale, START):
        found = found.model_copy(update={"early": state.early.add(step, values)})
    series = state.series.add(step, values)
    reward = state.reward.add(values.get(REWARD), found.scale)
    return found.model_copy(update={"series": series, "reward": reward})


def _evaluated(state: Monitor, evaluation: Evaluation, checkpoints: Sequence[int]) -> tuple[Monitor, bool]:
    scores = state.scores.add(evaluation)
    fresh = len(scores.points) > len(state.scores.points)
    state = state.model_copy(update={"scores": scores})
    if not fresh or not state.series.steps:
        return state, False
    view = state.view()
    look = False
    for rule in _SCORES:
        weight = 2 if evaluation.samples >= BIG else 1
        state, change = _judged(state, rule, view, weight, checkpoints)
        look = look or change in ("suspect", "confirmed")
    return state, look


def _judged(
    state: Monitor, rule: Rule, view: View, weight: int, checkpoints: Sequence[int]
) -> tuple[Monitor, Change | None]:
    """One rule after one step, or after one evaluation that counts `weight` times."""
    machine = state.machines.get(rule.rule_id) or Machine()
    seen = view if machine.anchor is None else view.at(machine.anchor)
    # A rule over scores is about two evaluations in a row, however long the run.
    plan: Confirmation = rule.confirmation.for_run(state.scale) if rule.source == "steps" else rule.confirmation
    change: Change | None = None
    if machine.phase == "confirmed":
        after, change = hold(machine, rule.clear(seen), plan)
        state = _held(state, rule, seen, machine.event)
        if change == "cleared":
            state = _cleared(state, machine.event, view.step, rule.rule_id)
    else:
        flag = rule.flag(seen)
        after = machine
        for _ in range(weight):
            if after.phase != "confirmed":
                after, now = watch(after, view.step, flag, plan)
                change = now or change
        if change == "confirmed":
            state, index = _confirmed(state, rule, after, seen, checkpoints)
            after = after.model_copy(update={"event": index})
    if after is machine:
        return state, change
    return state.model_copy(update={"machines": {**state.machines, rule.rule_id: after}}), change


def _confirmed(
    state: Monitor, rule: Rule, machine: Machine, view: View, checkpoints: Sequence[int]
) -> tuple[Monitor, int]:
    """The state with the event, and its index; an active event of the same type is shared."""
    for index, known in enumerate(state.events):
        if known.type == rule.type and known.clear_step is None:
            return state, index
    flagged = machine.onset or view.step
    key = rule.evidence(view)
    series = state.series
    at_once = rule.confirmation.k == 1
    column = series.columns.get(key, (None,) * len(series.steps))
    earlier = max((e.clear_step or 0 for e in state.events if e.type == rule.type), default=0)
    back = scaled(BACK, state.scale)
    onset = flagged if at_once else backdated(series.steps, column, flagged, back=back, after=earlier)
    healthy = last_healthy(checkpoints, onset, scaled(LAST_BEFORE, state.scale))
    tokens = series.between(TOKENS, series.steps[0], onset)
    values = series.between(key, flagged, view.step)
    event = EventRecord(
        type=rule.type,
        severity=rule.severity_of(view),
        onset_step=onset,
        confirm_step=view.step,
        peak_value=_worst(rule, key, values),
        baseline_value=rule.reference(view, key),
        rule_id=rule.rule_id,
        rule_version=rule.rule_version,
        checkpoint_last_healthy=None if healthy is None else f"{healthy:08d}",
        sampled_tokens_at_onset=int(tokens[-1]) if tokens else None,
        flagged_step=flagged,
        evidence=key,
        detail=rule.detail(view),
        sample_steps=tuple(sorted({machine.anchor or view.step, view.step})),
        metrics_window=series.window(_evidence(rule), onset - AROUND, view.step),
    )
    return state.model_copy(update={"events": (*state.events, event)}), len(state.events)


def _held(state: Monitor, rule: Rule, view: View, index: int | None) -> Monitor:
    """Keeps the worst value of an active event, and its evidence once that is complete."""
    if index is None:
        return state
    event = state.events[index]
    if event.rule_id != rule.rule_id:
        return state
    now = view.now(event.evidence) if event.evidence else None
    new = event
    if now is not None:
        peak = _worst(rule, event.evidence or "", [now, *([] if event.peak_value is None else [event.peak_value])])
        new = event if peak == event.peak_value else event.model_copy(update={"peak_value": peak})
    if view.step >= event.onset_step + AROUND:
        new = _with_window(state, new)
    return state if new is event else _replaced(state, index, new)


def _with_window(state: Monitor, event: EventRecord) -> EventRecord:
    """With the evidence up to 50 steps behind the onset, where that is known by now and was not yet."""
    had = event.metrics_window["step"]
    end = event.onset_step + AROUND
    fresh = [s for s in state.series.steps if s <= end and (not had or s > (had[-1] or 0))]
    if not fresh:
        return event
    keys = [key for key in event.metrics_window if key != "step"]
    window = state.series.window(keys, event.onset_step - AROUND, end)
    return event.model_copy(update={"metrics_window": window})


def _cleared(state: Monitor, index: int | None, step: int, rule_id: str) -> Monitor:
    """Ends an event, unless another rule still holds it."""
    others = (m for name, m in state.machines.items() if name != rule_id)
    if index is None or any(m.event == index for m in others):
        return state
    return _replaced(state, index, state.events[index].model_copy(update={"clear_step": step}))


def _replaced(state: Monitor, index: int, event: EventRecord) -> Monitor:
    events = (*state.events[:index], event, *state.events[index + 1 :])
    return state.model_copy(update={"events": events})


def _worst(rule: Rule, key: str, values: Sequence[float]) -> float | None:
    if not values:
        return None
    return min(values) if key in rule.worst_is_low else max(values)


def _evidence(rule: Rule) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*rule.watches, REWARD)))


def _noted(state: Monitor, note: str) -> Monitor:
    return state if note in state.notes or len(state.notes) >= 20 else state.model_copy(
        update={"notes": (*state.notes, note)}
    )  # fmt: skip
