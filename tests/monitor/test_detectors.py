"""Every detector on a hand-made curve: it fires when it should, clears when it should, and nothing else fires."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from harness.monitor.detectors import RULES
from harness.monitor.watch import columns
from tests.monitor.curves import HEALTHY, alarms, only, rows, watched

# type -> (what changes from step 100 on, steps until it is confirmed, severity)
FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "entropy_collapse": ({"entropy/exact": 0.05}, 8, "DEGRADED"),
    "entropy_explosion": ({"entropy/exact": 2.0}, 6, "DEGRADED"),
    "kl_blowup": ({"kl_ref/k3": 0.6}, 5, "DEGRADED"),
    "ratio_explosion": ({"ratio/ess_tok": 0.2}, 4, "DEGRADED"),
    "grad_explosion": ({"grad/norm_pre": 5.0}, 5, "DEGRADED"),
    "numeric": ({"health/nonfinite_loss": 1}, 1, "FATAL"),
    "length_explosion": ({"len/trunc_rate": 0.4}, 6, "DEGRADED"),
    "length_collapse": ({"len/mean": 20.0}, 6, "DEGRADED"),
    "degenerate_text": ({"text/rep_rate": 0.3}, 5, "DEGRADED"),
    "mismatch_blowup": ({"mismatch/k3": 0.06}, 4, "DEGRADED"),
    "dead_signal": ({"signal/zero_var_frac": 0.97}, 10, "DEGRADED"),
    "expert_collapse": ({"moe/dead_experts": 0.3}, 8, "DEGRADED"),
    "router_volatility": ({"moe/expert_change": 0.2}, 5, "WARN"),
    "value_failure": ({"value/explained_var": -0.1}, 15, "WARN"),
    "noop": ({"update/rel": 0.0}, 5, "WARN"),
}
# other ways to the same type
OTHER_WAYS = [
    ("kl_blowup", {"kl_ref/k3": 0.15}),  # ten times its trailing median, and above .1
    ("ratio_explosion", {"ratio/tok_q999": 11.0}),
    ("ratio_explosion", {"ratio/tok_mean": 1.15}),
    ("ratio_explosion", {"ratio/tok_mean": 0.85}),
    ("length_explosion", {"len/mean": 310.0}),
    ("mismatch_blowup", {"mismatch/abs_dlogp_mean": 0.11}),
    ("mismatch_blowup", {"mismatch/pearson_p": 0.88, "mismatch/abs_dlogp_mean": 0.05}),
    ("dead_signal", {"signal/refill_exhausted": 1}),
    ("dead_signal", {"signal/effective_groups": 1, "budget/prompts": 32, "signal/oversample_factor": 1.0}),
    ("expert_collapse", {"moe/route_entropy": 0.4}),
    ("expert_collapse", {"moe/max_vio": 6.0}),
    ("entropy_collapse", {"entropy/exact": None, "entropy/sampled": 0.0}),
    ("noop", {"update/rel": None, "kl_old/k3": 0.0}),
]


def test_a_healthy_run_has_no_event() -> None:
    assert watched(rows(400)).events == ()


@pytest.mark.parametrize("kind", FAULTS)
def test_it_confirms_after_k_flagged_steps_and_nothing_else_fires(kind: str) -> None:
    changes, k, severity = FAULTS[kind]
    assert alarms(watched(rows(130, changes, 100))) == [(kind, severity, 100, 100 + k - 1)]
    if k > 1:
        assert alarms(watched(rows(100 + k - 2, changes, 100))) == []


@pytest.mark.parametrize(("kind", "changes"), OTHER_WAYS)
def test_each_condition_of_a_rule_suffices(kind: str, changes: dict[str, Any]) -> None:
    known = {"entropy/sampled": 0.6} if "entropy/sampled" in changes else {}
    curve = [{**known, **row} for row in rows(130, changes, 100)]
    assert [e.type for e in watched(curve).events] == [kind]


@pytest.mark.parametrize("kind", [k for k in FAULTS if k != "numeric"])
def test_it_clears_after_a_healthy_stretch_and_may_come_again(kind: str) -> None:
    changes, _, severity = FAULTS[kind]
    ill = {key: lambda step, key=key: changes[key] if step < 130 or step >= 180 else HEALTHY[key] for key in changes}
    events = watched(rows(220, ill, 100)).events
    assert [(e.type, e.severity) for e in events] == [(kind, severity)] * 2
    assert events[0].clear_step is not None
    assert 130 < events[0].clear_step < 160
    assert (events[1].onset_step, events[1].clear_step) == (180, None)


@pytest.mark.parametrize("kind", [k for k in FAULTS if FAULTS[k][1] >= 4])
def test_a_short_disturbance_is_no_event(kind: str) -> None:
    changes, k, _ = FAULTS[kind]
    brief = {key: lambda step, key=key: changes[key] if step < 100 + k - 2 else HEALTHY[key] for key in changes}
    assert [e for e in watched(rows(160, brief, 100)).events if e.severity != "WARN"] == []


def test_numeric_is_fatal_at_once_and_for_good() -> None:
    event = only(watched(rows(200, {"health/nonfinite_grad": lambda s: 1 if s == 120 else 0}, 100)))
    assert (event.severity, event.onset_step, event.confirm_step, event.clear_step) == ("FATAL", 120, 120, None)


@pytest.mark.parametrize("cell", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("column", ["loss/total", "grad/norm_pre", "reward/mean", "loss/total/last"])
def test_a_raw_infinity_in_loss_gradient_or_reward_is_numeric(column: str, cell: float) -> None:
    assert only(watched(rows(60, {column: lambda s: cell if s == 50 else None}, 50))).type == "numeric"


def test_a_nan_elsewhere_is_a_gap() -> None:
    assert watched(rows(200, {"entropy/exact": float("nan"), "len/mean": float("inf")}, 100)).events == ()


def test_one_spike_of_the_gradient_is_a_warning() -> None:
    event = only(watched(rows(200, {"grad/norm_pre": lambda s: 8.0 if s == 120 else 0.7}, 100)))
    assert (event.type, event.severity, event.onset_step) == ("grad_spike", "WARN", 120)
    assert event.clear_step == 128


def test_a_burst_of_three_spikes_is_no_explosion_in_a_short_run_either() -> None:
    burst = {"grad/norm_pre": lambda s: 8.0 if 60 <= s < 63 else 0.7}
    for horizon in (400, 90, 70):
        assert {e.type for e in watched(rows(70, burst, 60), horizon=horizon).events} == {"grad_spike"}


def test_a_drift_that_the_trailing_median_follows_is_seen_against_the_baseline() -> None:
    slow = {"grad/norm_pre": lambda s: 0.7 * 1.02 ** (s - 100)}
    assert {e.type for e in watched(rows(300, slow, 100)).events} >= {"grad_explosion"}


class TestReward:
    """reward_collapse and below_base tell a loss from a decline."""

    def test_a_risen_run_that_falls_has_collapsed(self) -> None:
        event = only(watched(rows(160, {"reward/mean": lambda s: 0.2 + 0.01 * (-1) ** s}, 100)))
        assert (event.type, event.severity) == ("reward_collapse", "COLLAPSE")
        assert event.onset_step == 100
        assert event.confirm_step <= 113
        assert event.baseline_value == pytest.approx(0.7, abs=0.02)

    def test_a_run_that_falls_from_its_start_is_below_its_base(self) -> None:
        """The signature of four stale epochs without a clip: it never rose."""
        state = watched(rows(80, {"reward/mean": lambda s: max(0.05, 0.36 - 0.03 * s) + 0.01 * (-1) ** s}))
        assert [(e.type, e.severity) for e in state.events] == [("below_base", "COLLAPSE")]

    def test_a_risen_run_that_falls_below_its_base_is_both(self) -> None:
        events = watched(rows(160, {"reward/mean": lambda s: 0.05 + 0.01 * (-1) ** s}, 100)).events
        assert [(e.type, e.severity) for e in events] == [("reward_collapse", "COLLAPSE"), ("below_base", "COLLAPSE")]

    def test_half_of_it_is_no_collapse(self) -> None:
        assert watched(rows(200, {"reward/mean": lambda s: 0.42 + 0.01 * (-1) ** s}, 100)).events == ()

    @pytest.mark.parametrize(("scale", "shift"), [(10.0, 0.0), (1.0, -1.0), (100.0, -40.0)])
    def test_units_do_not_matter_where_the_range_is_known(self, scale: float, shift: float) -> None:
        def seen(value: float) -> float:
            return shift + scale * value

        curve = [{**r, "reward/mean": seen(r["reward/mean"] if r["step"] < 100 else 0.2)} for r in rows(160)]
        assert [e.type for e in watched(curve, reward_low=shift).events] == ["reward_collapse"]
        healthy = [{**r, "reward/mean": seen(r["reward/mean"])} for r in rows(160)]
        assert watched(healthy, reward_low=shift).events == ()

    def test_negative_rewards_of_an_unknown_range(self) -> None:
        healthy = [{**r, "reward/mean": r["reward/mean"] - 1} for r in rows(300)]
        assert watched(healthy).events == ()
        fallen = [{**r, "reward/mean": r["reward/mean"] - 1 if r["step"] < 200 else -0.95} for r in rows(300)]
        assert next(e.type for e in watched(fallen).events) == "reward_collapse"

    def test_noise_around_nothing_is_no_collapse(self) -> None:
        tiny = [{**r, "reward/mean": 0.01 + 0.008 * ((7 * r["step"]) % 5 - 2) / 2} for r in rows(300)]
        assert watched(tiny).events == ()


class TestSuccess:
    """What looks dead because the task is solved is never called a collapse."""

    SOLVED: ClassVar[dict[str, Any]] = {
        "signal/zero_var_frac": 0.99, "signal/zero_var_frac_all1": 0.98, "signal/zero_var_frac_all0": 0.01,
        "entropy/exact": 0.01, "text/distinct_in_group": 0.06, "reward/mean": lambda s: 0.98 + 0.005 * (-1) ** s,
    }  # fmt: skip

    def test_all_right_groups_and_late_low_entropy_are_warnings(self) -> None:
        events = watched(rows(300, self.SOLVED, 150)).events
        assert {(e.type, e.severity, e.detail) for e in events} == {
            ("dead_signal", "WARN", "solved"), ("entropy_collapse", "WARN", "solved"),
        }  # fmt: skip

    def test_low_entropy_without_knowing_why_is_degraded_and_no_more(self) -> None:
        event = only(watched(rows(300, {"entropy/exact": 0.01}, 150)))
        assert (event.type, event.severity) == ("entropy_collapse", "DEGRADED")

    @pytest.mark.parametrize(("start", "later", "kinds"), [
        (0.2, 0.03, ["entropy_collapse"]),  # hardly any left, and much less than at first
        (0.09, 0.03, []),  # a model that starts nearly certain
        (0.6, 0.08, []),  # less than a fifth, but not certain
    ])  # fmt: skip
    def test_certainty_counts_where_it_was_not_there_from_the_start(
        self, start: float, later: float, kinds: list[str]
    ) -> None:
        course = {"entropy/exact": lambda s: later if s >= 150 else start}
        assert [e.type for e in watched(rows(200, course, 1)).events] == kinds

    def test_all_wrong_groups_are_stuck(self) -> None:
        stuck = {"signal/zero_var_frac": 0.99, "signal/zero_var_frac_all0": 0.98, "signal/zero_var_frac_all1": 0.01}
        event = only(watched(rows(150, stuck, 100)))
        assert (event.type, event.severity, event.detail) == ("dead_signal", "DEGRADED", "stuck")

    def test_siblings_alike_are_degenerate_only_below_the_best_reward(self) -> None:
        alike = {"text/distinct_in_group": 0.125}
        assert watched(rows(200, alike, 120), siblings=8).events == ()
        worse = {**alike, "reward/mean": lambda s: 0.5 + 0.01 * (-1) ** s}
        assert [e.type for e in watched(rows(200, worse, 120), siblings=8).events] == ["degenerate_text"]


class TestBaselines:
    """Limits give way to a healthy baseline that lies close to them."""

    @pytest.mark.parametrize(
        ("key", "level"),
        [("len/trunc_rate", 0.4), ("text/rep_rate", 0.3), ("kl_ref/k3", 0.6), ("mismatch/k3", 0.05),
         ("mismatch/abs_dlogp_mean", 0.12), ("ratio/tok_q999", 12.0), ("entropy/exact", 0.04)],
    )  # fmt: skip
    def test_a_run_that_is_so_from_its_start_is_healthy(self, key: str, level: float) -> None:
        assert watched(rows(300, {key: level})).events == ()

    @pytest.mark.parametrize("tokens", [7, 25, 50_000])
    def test_half_of_a_uniform_distribution_is_never_the_lower_limit(self, tokens: int) -> None:
        """Where its baseline lies ten times below it, three times the baseline comes first."""
        uniform = math.log(tokens) / 2
        for base in (0.001, 0.01, 0.1, 0.3, 0.5):
            if 10 * base <= uniform:
                assert 3 * max(base, 0.3) <= uniform

    def test_the_reference_stays_as_it_was_at_the_first_flagged_step(self) -> None:
        """A new level does not become the trailing median of its own event."""
        event = only(watched(rows(400, {"len/mean": 400.0}, 100)))
        assert (event.type, event.clear_step) == ("length_explosion", None)

    def test_a_contaminated_start_is_judged_by_step_0(self) -> None:
        """Steps 5-25 are already broken; the baseline until step 25 is the first steps'."""
        event = only(watched(rows(60, {"entropy/exact": 0.01}, 4)))
        assert (event.type, event.onset_step, event.clear_step) == ("entropy_collapse", 4, None)


def test_rules_have_an_identity_and_read_columns_of_the_dictionary() -> None:
    from harness.core.metrics import BY_KEY, ROW_COLUMNS

    assert len({rule.rule_id for rule in RULES}) == len(RULES)
    own = {column.key for column in ROW_COLUMNS} | {"nonfinite"}
    assert [key for key in columns() if key not in BY_KEY and key not in own] == []
    assert {rule.type for rule in RULES} == {*FAULTS, "grad_spike", "reward_collapse", "below_base"}
