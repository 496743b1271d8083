"""Retention: what the ladder promises, whatever the order of saving, thinning and collapsing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.collapse import Episode, best_step, declared, first_collapse
from harness.core.results import EvalRecord, EventRecord
from harness.core.retention import GIB, fitting, keep, most, most_rungs, pinned, rungs
from harness.core.spec import CheckpointSpec

MIB = 2**20
every_s = st.integers(1, 12)
dense_s = st.integers(1, 16)
specs = st.builds(
    CheckpointSpec,
    newest=st.integers(1, 4),
    every=st.integers(0, 12),
    dense=dense_s,
    margin=st.integers(0, 20),
    best=st.booleans(),
    ladder=st.sampled_from(["while_running", "always"]),
    limit_gib=st.sampled_from([0.001, 0.1, 0.15, 16.0]),
)


@given(st.integers(0, 3000), every_s, dense_s)
def test_the_ladder_is_as_short_as_it_says(now: int, every: int, dense: int) -> None:
    found = rungs(range(now + 1), now, every, dense)
    assert len(found) <= most_rungs(now, every, dense)
    assert 0 in found
    assert max(found) == now // every * every


@given(st.integers(1, 2000), every_s, st.integers(1, 8).map(lambda k: 2 * k), st.data())
def test_the_ladder_has_a_rung_near_every_step(now: int, every: int, dense: int, data: st.DataObject) -> None:
    """The gap grows with the age a of what is looked for: at most max(2 every, 4 a / dense), plus one rung."""
    target = data.draw(st.integers(0, now))
    found = max(s for s in rungs(range(now + 1), now, every, dense) if s <= target)
    age = now - found
    assert target - found <= max(2 * every, 4 * age / dense)


@settings(max_examples=50)
@given(every_s, dense_s, st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_thinning_often_or_once_gives_the_same(every: int, dense: int, room: int, strides: list[int]) -> None:
    """Also where the room forces a thinner ladder on the way."""
    kept: frozenset[int] = frozenset()
    now = last = 0
    for stride in strides:
        now += stride
        new = range(last, now + 1)
        kept = rungs(kept | {*new}, now, every, fitting(now, every, dense, room))
        last = now
    assert kept == rungs(range(now + 1), now, every, fitting(now, every, dense, room))
    assert len(kept) <= room


@settings(max_examples=60)
@given(specs, st.data())
def test_a_run_keeps_what_recovery_needs(spec: CheckpointSpec, data: st.DataObject) -> None:
    """A run saved at ladder steps, at a few others and at the confirmation; the collapse is not known before it."""
    size = 10 * MIB
    confirm = data.draw(st.integers(1, 200))
    onset = data.draw(st.integers(max(1, confirm - 40), confirm))
    odd = data.draw(st.sets(st.integers(1, 300), max_size=12))
    best = data.draw(st.sampled_from(sorted(odd | {0})))
    episode = Episode(type="reward_collapse", onset=onset, confirm=confirm)
    present: set[int] = set()
    written: set[int] = set()
    for now in range(301):
        if now not in odd | {0, confirm, 300} and not (spec.every and now % spec.every == 0):
            continue
        known = episode if now >= confirm else None
        written.add(now)
        assert len(present | {now}) <= most(spec, now, size)
        present = {*keep(present | {now}, spec, size=size, best=best if best <= now else None, episode=known)}
    assert {*sorted(written)[-spec.newest :]} <= present
    assert best in present or not spec.best
    roles = pinned(sorted(present), episode, spec.margin)
    assert roles["collapsed"] == confirm
    if spec.every and spec.limit_gib == 16:
        age = confirm - roles["last_healthy"]
        wanted = max(0, onset - spec.margin)
        assert 0 <= wanted - roles["last_healthy"] <= max(2 * spec.every, 4 * age / spec.dense) + spec.every
        assert roles["last_healthy"] < onset
        assert roles["half"] < onset
    done = keep(present, spec, size=size, best=best, episode=episode, done=True)
    assert done == present, "a run that collapsed keeps its ladder"
    healthy = keep(present, spec, size=size, best=best, done=True)
    if spec.ladder == "while_running":
        assert len(healthy) <= spec.newest + spec.best


@given(specs, st.sets(st.integers(0, 400), max_size=40), st.integers(1, 200))
def test_keeping_twice_changes_nothing(spec: CheckpointSpec, steps: set[int], onset: int) -> None:
    for episode in (None, declared(onset, onset + 5)):
        once = keep(steps, spec, size=MIB, best=0, episode=episode)
        assert once <= steps
        assert keep(once, spec, size=MIB, best=0, episode=episode) == once


def test_the_roles_of_one_episode() -> None:
    steps = [0, 10, 20, 30, 40, 47, 50]
    episode = Episode(type="x", onset=41, confirm=47)
    assert pinned(steps, episode, 10) == {"last_healthy": 30, "half": 20, "collapsed": 47}
    assert pinned(steps, episode, 12)["last_healthy"] == 20
    named = Episode(type="x", onset=41, confirm=47, last_healthy=10)
    assert pinned(steps, named, 10)["last_healthy"] == 10
    early = Episode(type="x", onset=3, confirm=60)
    assert pinned(steps, early, 10) == {"last_healthy": 0, "half": 0}
    assert pinned([5, 9], Episode(type="x", onset=3, confirm=4), 10) == {"collapsed": 5}
    assert pinned([], episode, 10) == {}


def test_the_stated_disk_use_is_a_bound_in_bytes() -> None:
    spec = CheckpointSpec()
    assert most(spec, 100, MIB) == 8 + 4 + 6 + 1
    assert most(spec, 10**6, GIB) <= most_rungs(10**6, 10, 8) + 6 + 1
    assert most(spec, 10**6, 2 * GIB) == 64 / 2 + 1
    assert most(spec, 100, 8 * GIB) == 64 / 8 + 1
    assert most(spec, 10**6, 100 * GIB) == 6 + 1, "what must be kept is kept, whatever the limit"


def event(severity: str, onset: int, confirm: int, named: str | None = None) -> EventRecord:
    return EventRecord.model_validate(
        {"type": "t" + str(onset), "severity": severity, "onset_step": onset, "confirm_step": confirm,
         "rule_id": "r", "checkpoint_last_healthy": named}
    )  # fmt: skip


def test_the_first_confirmed_collapse_is_the_episode() -> None:
    events = [event("DEGRADED", 1, 2), event("COLLAPSE", 9, 30), event("FATAL", 12, 12, "checkpoints/00000010")]
    assert first_collapse(events) == Episode(type="t12", onset=12, confirm=12, last_healthy=10)
    assert first_collapse(events[:2]) == Episode(type="t9", onset=9, confirm=30)
    assert first_collapse(events[:1]) is None


def test_the_best_is_the_first_maximum_on_validation() -> None:
    def score(step: int, value: float, split: str = "validation") -> EvalRecord:
        return EvalRecord.model_validate(
            {"step": step, "sampled_tokens_cum": 0, "split": split, "task": "chain", "samples": 1, "score": value,
             "reward_mean": 0, "length_mean": 0, "truncated": 0, "questions": ()}
        )  # fmt: skip

    evals = [score(0, 0.2), score(0, 0.9, "test"), score(4, 0.5), score(8, 0.5), score(12, 0.7)]
    assert best_step(evals) == 12
    assert best_step(evals, before=11) == 4
    assert best_step([]) is None
