"""The state machine under every rule: confirmation, hysteresis, gaps, and runs that are short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.monitor.detectors import RULES
from harness.monitor.machine import STALE, Confirmation, Machine, hold, watch

FLAGS = st.lists(st.sampled_from([True, False, None]), max_size=80)
PLANS = st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 6)).map(
    lambda t: Confirmation(k=t[0], n=t[0] + t[1], clear=t[2])
)


def run(flags: list[bool | None], plan: Confirmation, first: int = 1) -> list[Machine]:
    """Machines after each step; a confirmed one stays so."""
    machine, found = Machine(), []
    for step, flag in enumerate(flags, start=first):
        if machine.phase != "confirmed":
            machine, _ = watch(machine, step, flag, plan)
        found.append(machine)
    return found


def confirmed_at(flags: list[bool | None], plan: Confirmation) -> int | None:
    return next((i for i, m in enumerate(run(flags, plan), start=1) if m.phase == "confirmed"), None)


@given(FLAGS, PLANS)
def test_it_confirms_at_the_first_k_of_the_last_n_known_steps(flags: list[bool | None], plan: Confirmation) -> None:
    """Against a restatement that keeps the whole list."""
    expected = None
    known: list[tuple[int, bool]] = []
    for step, flag in enumerate(flags, start=1):
        if flag is None:
            continue
        known.append((step, flag))
        recent = [f for s, f in known[-plan.n :] if s > step - STALE * plan.n]
        if sum(recent) >= plan.k:
            expected = step
            break
    assert confirmed_at(flags, plan) == expected


@given(FLAGS, PLANS)
def test_unknown_steps_change_nothing(flags: list[bool | None], plan: Confirmation) -> None:
    machine = run(flags, plan)[-1] if flags else Machine()
    if machine.phase != "confirmed":
        assert watch(machine, 1000, None, plan) == (machine, None)
    else:
        assert hold(machine, None, plan) == (machine, None)


@given(FLAGS, PLANS)
def test_onset_and_anchor_are_flagged_steps_in_order(flags: list[bool | None], plan: Confirmation) -> None:
    for step, machine in enumerate(run(flags, plan), start=1):
        if machine.phase == "ok":
            assert machine == Machine()
        else:
            assert machine.anchor is not None
            assert machine.onset is not None
            assert 1 <= machine.anchor <= machine.onset <= step
            assert flags[machine.anchor - 1]
            assert flags[machine.onset - 1]


@given(st.lists(st.sampled_from([True, False, None]), max_size=40), st.integers(1, 6))
def test_it_clears_after_so_many_clear_steps_in_a_row(clears: list[bool | None], wanted: int) -> None:
    machine = Machine(phase="confirmed", flagged=((1, True),), anchor=1)
    plan = Confirmation(k=1, n=1, clear=wanted)
    streak, ended = 0, None
    for step, clear in enumerate(clears):
        machine, change = hold(machine, clear, plan)
        streak = streak if clear is None else streak + 1 if clear else 0
        if change == "cleared":
            ended = step
            break
        assert machine.phase == "confirmed"
    assert (ended is not None) == (streak >= wanted)
    assert ended is None or machine == Machine()


def test_what_never_clears_stays() -> None:
    machine = Machine(phase="confirmed", flagged=((1, True),), anchor=1)
    for _ in range(100):
        machine, change = hold(machine, True, Confirmation(k=1, n=1, clear=None))
        assert change is None


def test_flags_far_apart_do_not_add_up() -> None:
    """Steps that were not measured in between do not keep an old suspicion alive for ever."""
    plan = Confirmation(k=2, n=4, clear=4)
    machine, _ = watch(Machine(), 1, True, plan)
    assert watch(machine, 2, True, plan)[0].phase == "confirmed"
    assert watch(machine, 1 + STALE * plan.n, True, plan)[0].phase == "suspect"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.rule_id)
@given(steps=st.integers(1, 1000))
def test_short_runs_shrink_k_n_and_clear(rule: object, steps: int) -> None:
    """Never under n = 3 and k = 2, k <= n, monotone in T, and untouched from 150 steps on."""
    plan: Confirmation = rule.confirmation  # type: ignore[attr-defined]
    here, longer = plan.for_run(min(1.0, steps / 150)), plan.for_run(min(1.0, (steps + 1) / 150))
    if plan.k == 1:
        assert here == plan
        return
    assert here.n >= min(3, plan.n)
    assert 2 <= here.k <= here.n
    assert (here.k, here.n) <= (longer.k, longer.n)
    assert steps < 150 or here == plan
    assert abs(here.n - max(min(3, plan.n), plan.n * min(1.0, steps / 150))) < 1
