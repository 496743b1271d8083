"""The verdict on an attempt: METHOD's conditions one by one, and the counting over episodes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.core.provenance import collect
from harness.core.recovery import AttemptRecord, EpisodeSpec, RecoveryReport, RecoverySpec, Verdict
from harness.core.results import EventRecord
from harness.report.recovery import cells, markdown, terminal
from harness.study.judge import judge
from harness.study.recovered import _row, answer, bound

EPISODE = EpisodeSpec(
    run="results/a/runs/grpo-s0-00000000", arm="GRPO", seed=0, type="reward_collapse", onset=40, confirm=48, base=0.3,
    best=0.7, tolerance=0.03, checkpoints={"last_healthy": 30, "collapsed": 48}, steps=100, survive=58,
)  # fmt: skip
HAND = EPISODE.model_copy(update={"type": "declared"})
GOOD, HALF, BAD = 0.68, 0.55, 0.1
END = 130


def event(onset: int, *, kind: str = "reward_collapse", severity: str = "COLLAPSE", clear: int | None = None) -> Any:
    return EventRecord.model_validate(
        {"type": kind, "severity": severity, "onset_step": onset, "confirm_step": onset + 8, "clear_step": clear,
         "rule_id": "r"}
    )  # fmt: skip


def curve(*scores: float, first: int = 40, every: int = 10) -> list[tuple[int, float]]:
    return [(first + every * i, score) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "events", "last", "expected", "words"),
    [
        (curve(BAD, HALF, GOOD, GOOD, GOOD), [], END, "recovered", "from step 60 on"),
        (curve(GOOD, GOOD, GOOD, HALF, HALF), [], END, "recovered", "from step 40 on"),
        (curve(GOOD, GOOD, HALF, GOOD, GOOD), [], END, "partial", "never 3 evaluations in a row at 0.670"),
        (curve(GOOD, GOOD, GOOD, HALF, BAD, first=10), [], END, "not recovered", "past the old onset"),
        (curve(GOOD, GOOD, GOOD), [], 97, "partial", "too soon"),
        (curve(GOOD, GOOD, GOOD), [], 98, "recovered", "0.670"),
        (curve(0.67, 0.67, 0.67), [], END, "recovered", "0.670"),
        (curve(0.669, 0.669, 0.669), [], END, "partial", "0.670"),
        (curve(0.5, 0.5, 0.5), [], END, "partial", "ends at 0.500"),
        (curve(0.5, 0.5, 0.499), [], END, "not recovered", ""),
        (curve(BAD, BAD, BAD), [], END, "not recovered", ""),
        (curve(GOOD, GOOD, GOOD, GOOD), [event(70)], END, "recurred", "reward_collapse again at step 70"),
        (curve(GOOD, GOOD, GOOD, GOOD), [event(60, clear=75)], END, "recovered", ""),
        (curve(GOOD, GOOD, GOOD, GOOD), [event(60), event(60, clear=75)], END, "recovered", ""),
        (curve(GOOD, GOOD, GOOD, GOOD), [event(60), event(70, clear=75)], END, "recurred", ""),
        (curve(HALF, HALF, HALF), [event(60, clear=75)], END, "recurred", ""),
        (curve(HALF, HALF, HALF), [event(60, kind="kl_blowup")], END, "partial", "ends at 0.550"),
        (curve(GOOD, GOOD, GOOD), [event(60, kind="numeric", severity="FATAL")], END, "partial", "active at the end"),
        (curve(GOOD, GOOD, GOOD), [event(60, severity="DEGRADED")], END, "recovered", ""),
        (curve(GOOD, GOOD, GOOD, BAD, BAD), [], END, "not recovered", "active at the end"),
        (curve(GOOD, GOOD, GOOD, GOOD, BAD), [], END, "recovered", ""),
        ([], [], 50, "not recovered", "never 3"),
    ],
)
def test_the_conditions(
    scores: list[tuple[int, float]], events: list[EventRecord], last: int, expected: str, words: str
) -> None:
    found = judge(EPISODE, scores, events, last)
    assert (found.verdict, words in found.why) == (expected, True), found


def test_a_collapse_named_by_hand_recurs_by_score_or_by_any_collapse() -> None:
    scores = curve(GOOD, GOOD, GOOD, BAD, BAD)
    assert judge(EPISODE, scores, [], END).verdict == "not recovered"
    assert judge(HAND, scores, [], END).verdict == "recurred"
    assert judge(HAND, curve(HALF, HALF), [event(60, kind="kl_blowup")], END).verdict == "recurred"


def oracle(e: EpisodeSpec, scores: list[tuple[int, float]], events: list[EventRecord], last: int) -> str:
    """The same in loops."""
    streak = reached = 0
    best, low, lost_ever = 0.0, 0, False
    for step, score in scores:
        streak = streak + 1 if step >= e.onset and score >= e.best - e.tolerance else 0
        reached = reached or streak == 3
        low = low + 1 if score < 0.5 * best else 0
        lost_ever = lost_ever or low >= 2
        best = max(best, score)
    if len({x.onset_step for x in events}) < len(events):  # said twice: the later record counts
        events = events[1:]
    open_events = [x for x in events if x.severity in ("FATAL", "COLLAPSE") and x.clear_step is None]
    if reached and not open_events and low < 2 and last - e.onset >= e.survive:
        return "recovered"
    kinds = {x.type for x in events if x.severity in ("FATAL", "COLLAPSE")}
    if e.type in kinds or (e.type == "declared" and (kinds or lost_ever)):
        return "recurred"
    tail = scores[-3:]
    middle = (e.base + e.best) / 2
    return "partial" if tail and sum(s for _, s in tail) / len(tail) >= middle else "not recovered"


@given(
    st.sampled_from([EPISODE, HAND]),
    st.lists(st.sampled_from([0.05, 0.2, 0.34, 0.45, 0.6, 0.69, 0.8]), max_size=9),
    st.lists(st.sampled_from([event(60), event(60, clear=90), event(50, kind="numeric", severity="FATAL"),
                              event(70, severity="WARN")]), max_size=2),
    st.integers(60, 140),
)  # fmt: skip
def test_any_curve_against_the_rule_in_loops(
    episode: EpisodeSpec, scores: list[float], events: list[EventRecord], last: int
) -> None:
    evals = curve(*scores, first=20)
    found = judge(episode, evals, events, last)
    assert found.verdict == oracle(episode, evals, events, last)
    assert (found.at is not None) == (found.verdict == "recovered")


def attempt(verdict: Verdict | None, episode: int = 0, remedy: str = "restart", start: Any = "collapsed") -> Any:
    return AttemptRecord(
        run_id="x", episode=episode, start=start, remedy=remedy, seed=101, verdict=verdict, why="",
        recovered_after=30 if verdict == "recovered" else None, steps=100 if verdict else None,
        score=0.5 if verdict else None,
    )  # fmt: skip


def test_the_unit_of_an_interval_is_the_episode() -> None:
    """Two of three seeds recover in episode 0, one of three in episode 1, none in episode 2: one episode of three."""
    attempts = [attempt("recovered" if i < won else "partial", episode) for episode, won in enumerate((2, 1, 0))
                for i in range(3)] + [attempt(None, 0)]  # fmt: skip
    row = _row("collapsed", "restart", attempts)
    assert row is not None
    assert (row.attempts, row.unfinished, row.verdicts["recovered"]) == (9, 1, 3)
    assert (row.episodes.k, row.episodes.n) == (1, 3)
    assert row.episodes.low == pytest.approx(stats.beta.ppf(0.025, 1.5, 2.5))
    assert row.episodes.high == pytest.approx(stats.beta.ppf(0.975, 1.5, 2.5))
    assert row.median_steps is None, "three of nine"
    assert _row("collapsed", "restart", attempts[:3]).median_steps == 30  # type: ignore[union-attr]
    tie = _row("collapsed", "restart", [attempt("recovered"), attempt("partial")])
    assert tie is not None
    assert tie.episodes.k == 0, "half is not more than half"
    assert _row("collapsed", "restart", []) is None


SPEC = RecoverySpec(
    name="n", episodes=(EPISODE, EPISODE), attempts=(), seeds=(101,),
    remedies={"restart": "plain restart", "longer": "twice as long", "lr_third": "lr / 3"},
)  # fmt: skip


def test_irreversible_is_said_only_from_enough() -> None:
    names = ("restart", "longer", "lr_third", "restart", "longer", "lr_third", "restart", "longer", "lr_third")
    lost = [attempt("not recovered", i % 2, name) for i, name in enumerate(names)]
    [said] = answer(SPEC, lost)
    assert "too little to call it irreversible" in said
    [said] = answer(SPEC, [*lost, attempt("partial")])
    assert said.startswith("None of 10 attempts with 3 remedies from the collapsed checkpoint (2 episodes) recovered")
    assert "0.26" in said, "METHOD: 0 of 10, upper 95 % bound 26 %"
    assert f"{bound(2):.2f}" in said
    [said] = answer(SPEC, [*lost, attempt("partial"), attempt("recovered", 0, "longer")])
    assert said == "1 of 11 attempts with 3 remedies from the collapsed checkpoint (2 episodes) recovered, with: " \
                   "twice as long."  # fmt: skip
    two = answer(SPEC, [attempt("recovered", start="last_healthy"), attempt("partial"), attempt(None)])
    assert len(two) == 3
    assert "last healthy" in two[0]
    assert two[2] == "1 attempt without a verdict."


def test_every_format_says_the_same() -> None:
    attempts = (attempt("recovered"), attempt("partial"), attempt("recurred", 1, "longer", "last_healthy"))
    rows = [_row("last_healthy", "longer", attempts[2:]), _row("collapsed", "restart", attempts[:2])]
    record = RecoveryReport.model_validate(
        {"spec": SPEC, "attempts": attempts, "rows": rows, "answer": answer(SPEC, attempts), "provenance": collect([])}
    )
    data = record.model_dump(mode="json")
    assert [row[:7] for row in cells(data)] == [
        ("last healthy", "twice as long", "0/1", "0", "1", "0", "0/1"),
        ("collapsed", "plain restart", "1/2", "1", "0", "0", "0/1"),
    ]
    page, screen = markdown(data), terminal(data)
    for row in cells(data):
        assert f"| {' | '.join(row)} |" in page
        assert all(cell.replace("−", "-") in screen for cell in row)
    for sentence in record.answer:
        assert sentence in page
    assert "results/a" not in page, "a report names runs, not places"
