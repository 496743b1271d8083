"""The fold: state as JSON, replays, short runs, the score criterion, outcomes, and input of any kind."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.results import EventRecord
from harness.monitor.detectors import RULES
from harness.monitor.onset import backdated, best_break
from harness.monitor.outcome import ends_the_run, outcome
from harness.monitor.scores import Evaluation, Scores
from harness.monitor.severity import last_healthy
from harness.monitor.view import scaled
from harness.monitor.watch import Monitor, close, columns, learned, update
from tests.monitor.curves import alarms, only, rows, watched

ILL = {"entropy/exact": 0.02, "len/trunc_rate": 0.5, "reward/mean": lambda s: 0.1 + 0.01 * (-1) ** s}


def evaluation(step: int, score: float, samples: int = 256, split: str = "validation") -> Evaluation:
    right = round(score * samples)
    shares = tuple([1.0] * right + [0.0] * (samples - right))
    return Evaluation(step=step, split=split, score=score, samples=samples, shares=shares, questions="q")


class TestState:
    """What a checkpoint keeps is all there is."""

    @pytest.mark.parametrize("cut", [0, 1, 24, 100, 105, 109, 140, 200])
    def test_a_state_that_went_through_json_goes_on_the_same(self, cut: int) -> None:
        curve = rows(220, ILL, 100)
        scores = {step: [evaluation(step, 0.5 if step < 100 else 0.1)] for step in range(0, 220, 10)}
        whole = watched(curve, scores)
        state = update(Monitor(horizon=400), None, scores[0]).state
        for row in curve[:cut]:
            state = update(state, row, scores.get(row["step"], [])).state
        state = Monitor.model_validate(json.loads(json.dumps(state.model_dump(mode="json"), allow_nan=False)))
        for row in curve[cut:]:
            state = update(state, row, scores.get(row["step"], [])).state
        assert close(state) == whole
        assert whole.events

    def test_the_state_is_bounded(self) -> None:
        state = watched(rows(1000))
        assert len(state.series.steps) == 160
        assert len(state.early.steps) == 25
        assert len(json.dumps(state.model_dump(mode="json"))) < 150_000

    def test_an_update_leaves_the_old_state_alone(self) -> None:
        old = watched(rows(120, ILL, 100))
        before = old.model_dump_json()
        update(old, {**rows(1)[0], "step": 121})
        assert old.model_dump_json() == before


class TestEvents:
    """What a record holds, and when it is told."""

    def test_new_and_changed_events_are_told_once(self) -> None:
        told: list[tuple[int, str, str, bool]] = []
        state = Monitor(horizon=400)
        for row in rows(260, {"text/rep_rate": lambda s: 0.4 if s < 120 else 0.0}, 100):
            seen = update(state, row)
            state = seen.state
            told += [(row["step"], e.type, e.severity, e.clear_step is not None) for e in seen.events]
        assert told == [
            (104, "degenerate_text", "DEGRADED", False),
            (127, "degenerate_text", "DEGRADED", True),
        ]

    def test_a_record_has_evidence_worst_value_baseline_and_tokens(self) -> None:
        curve = [
            {**row, "sampled_tokens_cum": 1000 * row["step"]}
            for row in rows(200, {"entropy/exact": lambda s: 0.05 - 0.0004 * (s - 100)}, 100)
        ]
        event = only(watched(curve))
        assert event.evidence == "entropy/exact"
        assert event.baseline_value == pytest.approx(0.6)
        assert event.peak_value == pytest.approx(0.05 - 0.0004 * 100)
        assert event.sampled_tokens_at_onset == 100_000
        assert event.metrics_window["step"] == [float(s) for s in range(50, 151)]
        assert {len(values) for values in event.metrics_window.values()} == {101}
        assert event.metrics_window["entropy/exact"][49:51] == pytest.approx([0.6, 0.05])
        assert event.sample_steps == (100, 107)
        assert (event.rule_id, event.rule_version) == ("entropy_collapse", 2)

    def test_the_evidence_of_an_event_at_the_end_is_what_there_is(self) -> None:
        event = only(watched(rows(112, {"entropy/exact": 0.01}, 100)))
        assert event.metrics_window["step"][-1] == 112

    def test_the_last_healthy_checkpoint_lies_ten_steps_before_the_onset(self) -> None:
        state = Monitor(horizon=400)
        for row in rows(110, {"entropy/exact": 0.01}, 100):
            state = update(state, row, checkpoints=[20, 80, 90, 91, 105]).state
        assert only(state).checkpoint_last_healthy == "00000090"
        assert last_healthy([91, 95], 100) is None

    def test_looks_are_asked_for_at_the_first_flagged_step_and_at_the_confirmation(self) -> None:
        state, looks = Monitor(horizon=400), []
        for row in rows(130, {"entropy/exact": 0.01, "value/explained_var": -1.0}, 100):
            seen = update(state, row)
            state, looks = seen.state, looks + ([row["step"]] if seen.look else [])
        assert looks == [100, 107]

    def test_the_same_type_is_one_event_however_many_rules_see_it(self) -> None:
        scores = {step: [evaluation(step, 0.7 if step < 100 else 0.05)] for step in range(0, 200, 5)}
        state = watched(rows(200, {"reward/mean": lambda s: 0.05 + 0.01 * (-1) ** s}, 100), scores)
        assert [e.type for e in state.events].count("reward_collapse") == 1
        held = [name for name, machine in state.machines.items() if machine.phase == "confirmed"]
        assert {"reward_collapse", "reward_collapse.held_out"} <= set(held)


class TestScale:
    """Runs of T < 150 steps have proportionally shorter windows."""

    @pytest.mark.parametrize(("horizon", "k"), [(400, 8), (150, 8), (100, 6), (75, 4), (40, 3), (20, 2)])
    def test_confirmation_comes_after_the_scaled_number_of_steps(self, horizon: int, k: int) -> None:
        begin = horizon // 2
        state = watched(rows(horizon, {"entropy/exact": 0.01}, begin), horizon=horizon)
        assert only(state).confirm_step == begin + k - 1

    def test_the_horizon_comes_from_the_first_row(self) -> None:
        curve = [{**row, "budget_fraction": row["step"] / 60} for row in rows(60, {"entropy/exact": 0.01}, 30)]
        state = Monitor()
        for row in curve:
            state = update(state, row).state
        assert state.horizon == 60
        assert only(state).confirm_step == 30 + scaled(8, 60 / 150) - 1


class TestScores:
    """The held-out score decides how bad an event is."""

    def test_a_pathology_with_a_lost_score_is_a_collapse(self) -> None:
        at = {s: [evaluation(s, 0.6 if s < 100 else 0.1)] for s in (0, 50, 110, 120, 130)}
        state = watched(rows(140, {"entropy/exact": 0.01}, 100), at)
        found = {e.type: (e.severity, e.collapse_step) for e in state.events}
        assert found["entropy_collapse"] == ("COLLAPSE", 120)

    def test_one_small_evaluation_is_not_enough_and_one_of_2000_samples_is(self) -> None:
        small = {0: [evaluation(0, 0.6)], 120: [evaluation(120, 0.1)]}
        large = {0: [evaluation(0, 0.6)], 120: [evaluation(120, 0.1, samples=2000)]}
        ill = rows(140, {"entropy/exact": 0.01}, 100)
        assert {e.severity for e in watched(ill, small).events} == {"DEGRADED"}
        assert {e.severity for e in watched(ill, large).events if e.type == "entropy_collapse"} == {"COLLAPSE"}

    def test_half_of_the_best_is_told_from_noise(self) -> None:
        """Four of 48 right, then two, then one: no one knows."""
        scores = Scores()
        for step, right in ((0, 4), (10, 2), (20, 1), (30, 1)):
            scores = scores.add(evaluation(step, right / 48, samples=48))
        assert not scores.lost

    def test_a_warning_never_escalates(self) -> None:
        at = {s: [evaluation(s, 0.6 if s < 100 else 0.1)] for s in (0, 110, 120, 130)}
        events = watched(rows(140, {"value/explained_var": -1.0}, 90), at).events
        assert {e.severity for e in events if e.type == "value_failure"} == {"WARN"}

    def test_below_base_by_the_lower_bound_of_the_paired_difference(self) -> None:
        def seen(score: float) -> list[tuple[str, str, int, int]]:
            at = {s: [evaluation(s, 0.4 if s == 0 else score)] for s in (0, 20, 40)}
            return alarms(watched(rows(60), at))

        assert ("below_base", "COLLAPSE", 40) in [(t, s, c) for t, s, _, c in seen(0.08)]
        assert "below_base" not in [t for t, *_ in seen(0.18)]  # under a half, but not beyond noise

    def test_a_final_evaluation_of_2000_samples_confirms_at_once(self) -> None:
        flat = [{**row, "reward/mean": 0.36 + 0.01 * (-1) ** row["step"]} for row in rows(40)]
        test = [evaluation(0, 0.36, samples=2000, split="test")], [evaluation(40, 0.1, samples=2000, split="test")]
        state = update(watched(flat, {0: test[0]}, horizon=40), None, test[1]).state
        assert [(e.type, e.confirm_step) for e in state.events] == [("below_base", 40)]

    def test_evaluations_made_together_say_what_they_say_one_by_one(self) -> None:
        """As a replay and a run see the last step: the score is lost in two small evaluations, not in the final one."""
        scores = {s: [evaluation(s, 0.6 if s < 100 else 0.1)] for s in (0, 50, 110)}
        last = [evaluation(120, 0.1), evaluation(120, 0.4, samples=2000, split="test")]
        scores[0].append(evaluation(0, 0.4, samples=2000, split="test"))
        degenerate = rows(120, {"text/rep_rate": 0.4}, 100)
        state = watched(degenerate[:-1], scores)
        together = update(state, degenerate[-1], last).state
        apart = update(update(state, degenerate[-1], last[:1]).state, None, last[1:]).state
        assert together == apart
        assert [e.severity for e in together.events if e.type == "degenerate_text"] == ["COLLAPSE"]

    def test_an_evaluation_counts_once(self) -> None:
        scores = Scores().add(evaluation(0, 0.5)).add(evaluation(10, 0.2))
        assert scores.add(evaluation(10, 0.2)) is scores
        assert scores.add(evaluation(0, 0.5)) is scores

    @given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
    def test_the_best_is_the_largest_so_far_the_first_included(self, values: list[float]) -> None:
        scores = Scores()
        for step, value in enumerate(values):
            scores = scores.add(Evaluation(step=step, split="x", score=value))
        assert scores.best == max(values)
        assert [p.lost for p in scores.points] == [v < 0.5 * max(values[: i + 2]) for i, v in enumerate(values[1:])]


class TestOutcome:
    """completed, collapsed, no_learning and infra_failed are kept apart."""

    @staticmethod
    def event(severity: Any, clear_step: int | None = None) -> EventRecord:
        return EventRecord(
            type="x", severity=severity, onset_step=1, confirm_step=2, clear_step=clear_step, rule_id="x"
        )

    @pytest.mark.parametrize(
        ("severities", "learned_it", "error", "expected"),
        [
            ([], True, None, "completed"),
            (["WARN", "DEGRADED"], True, None, "completed"),
            (["COLLAPSE"], True, None, "collapsed"),
            (["FATAL"], True, None, "collapsed"),
            (["COLLAPSE"], False, None, "collapsed"),  # a decline from the start is no `no_learning`
            (["DEGRADED"], False, None, "no_learning"),
            ([], None, None, "completed"),
            (["COLLAPSE"], False, "out of memory", "infra_failed"),
        ],
    )
    def test_the_order_of_the_verdicts(
        self, severities: list[str], learned_it: bool | None, error: str | None, expected: str
    ) -> None:
        events = [self.event(s) for s in severities]
        assert outcome(events, steps=100, learned=learned_it, error=error) == expected

    def test_a_collapse_that_cleared_counts(self) -> None:
        assert outcome([self.event("COLLAPSE", clear_step=50)], steps=100, learned=True) == "collapsed"

    def test_a_run_of_a_few_steps_cannot_be_said_to_have_learned_nothing(self) -> None:
        assert outcome([], steps=4, learned=False) == "completed"

    @pytest.mark.parametrize(
        ("policy", "severity", "stops"),
        [("record", "FATAL", False), ("stop_on_fatal", "FATAL", True), ("stop_on_fatal", "COLLAPSE", False),
         ("stop", "COLLAPSE", True), ("stop", "FATAL", True), ("stop", "DEGRADED", False)],
    )  # fmt: skip
    def test_policies(self, policy: Any, severity: str, stops: bool) -> None:
        assert ends_the_run([self.event("WARN"), self.event(severity)], policy) is stops
        assert not ends_the_run([], policy)

    def test_learned(self) -> None:
        flat = [{**row, "reward/mean": 0.4 + 0.02 * ((3 * row["step"]) % 7 - 3) / 3} for row in rows(100)]
        assert learned(watched(rows(100))) is True
        assert learned(watched(flat)) is False
        assert learned(Monitor()) is None
        gained = {0: [evaluation(0, 0.4, 2000)], 90: [evaluation(90, 0.5, 2000)]}
        assert learned(watched(flat, gained)) is True


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(-(10**400), 10**400), st.lists(st.none(), max_size=1),
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300]),
)  # fmt: skip


class TestBadInput:
    """Whatever stands in a row, the run goes on."""

    @settings(max_examples=60)
    @given(st.lists(st.dictionaries(st.sampled_from([*columns(), "budget_fraction", "step"]), ANYTHING), max_size=30))
    def test_no_row_can_break_the_monitor(self, curve: list[dict[str, Any]]) -> None:
        state = Monitor()
        for index, row in enumerate(curve, start=1):
            state = update(state, {"step": index, **row}).state
        text = json.dumps(close(state).model_dump(mode="json"), allow_nan=False)
        assert Monitor.model_validate(json.loads(text)) == close(state)

    @settings(max_examples=30)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 5000))
    def test_no_evaluation_can_break_it(self, values: list[float], samples: int) -> None:
        state = watched(rows(30))
        for step, value in enumerate(values):
            state = update(state, None, [evaluation(step * 3, value, samples)]).state
        json.dumps(state.model_dump(mode="json"), allow_nan=False)

    @pytest.mark.parametrize("share", [2, 3, 5])
    def test_missing_points_delay_and_do_not_hide(self, share: int) -> None:
        """Only every n-th step has the metric."""
        ill = {"entropy/exact": lambda s: 0.01 if s % share == 0 else None}
        event = only(watched([r if r["step"] % share == 0 or r["step"] >= 100 else {**r, "entropy/exact": None}
                              for r in rows(300, ill, 100)]))  # fmt: skip
        assert event.type == "entropy_collapse"
        assert event.onset_step >= 100
        assert event.confirm_step < 100 + 8 * share

    def test_a_stretch_without_measurements_is_bridged(self) -> None:
        gap = {"entropy/exact": lambda s: None if 103 <= s < 115 else 0.01}
        event = only(watched(rows(200, gap, 100)))
        assert (event.onset_step, event.confirm_step) == (100, 119)

    def test_steps_that_do_not_rise_and_rows_without_steps_are_left_out_and_noted(self) -> None:
        curve = rows(50)
        odd = [*curve[:20], curve[10], {"reward/mean": 1.0}, {"step": "x"}, {"step": 20.5}, *curve[20:]]
        state = watched(odd)
        assert state.series == watched(curve).series
        assert len(state.notes) == 2

    def test_a_log_that_begins_late_has_its_own_baseline(self) -> None:
        late = [{**row, "step": row["step"] + 500} for row in rows(160, {"entropy/exact": 0.01}, 100)]
        assert only(watched(late)).confirm_step == 607

    def test_nothing_but_steps(self) -> None:
        assert watched([{"step": s} for s in range(1, 100)]).events == ()


class TestOnset:
    """Back-dating by a change point."""

    @given(st.integers(10, 50), st.integers(5, 30), st.floats(0.5, 50), st.integers(0, 10**6))
    def test_a_step_is_found_where_it_is(self, before: int, after: int, height: float, seed: int) -> None:
        noise = [0.02 * math.sin(1.7 * i + seed) for i in range(before + after)]
        values = [noise[i] + (height if i >= before else 0.0) for i in range(before + after)]
        assert best_break(values) == before

    def test_one_level_has_no_break(self) -> None:
        assert best_break([0.5 + 0.01 * (-1) ** i for i in range(60)]) is None
        assert best_break([0.0] * 30) is None

    def test_it_is_only_ever_moved_back_and_never_past_60_steps(self) -> None:
        steps = list(range(1, 201))
        values: list[float | None] = [0.0] * 60 + [1.0] * 140
        assert backdated(steps, values, 180) == 180  # the break lies before the window: one level
        assert backdated(steps, values, 100) == 61
        assert backdated(steps, values, 40) == 40
        assert backdated(steps, values, 100, after=80) == 100

    def test_it_matches_trying_every_split(self) -> None:
        values = [((37 * i) % 11) / 20 + (1.5 if i > 33 else 0.0) for i in range(50)]

        def cost(part: list[float]) -> float:
            mean = sum(part) / len(part)
            return sum((v - mean) ** 2 for v in part)

        wanted = min(range(3, 50), key=lambda b: cost(values[:b]) + cost(values[b:]))
        assert best_break(values) == wanted


def test_the_cost_of_a_step_is_far_below_a_hundredth_of_one_of_the_embedded_model() -> None:
    """3 ms are 1 % of the fastest step there is; it takes about a third of a millisecond."""
    import time

    curve = rows(300)
    state = Monitor(horizon=400)
    for row in curve[:200]:
        state = update(state, row).state
    start = time.process_time()
    for row in curve[200:]:
        state = update(state, row).state
    assert (time.process_time() - start) / 100 < 3e-3
    assert len(RULES) == 20
