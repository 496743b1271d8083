"""Runs broken on purpose: the studies are runnable as they stand, and the label knows nothing of the detectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.resolve import deviations, resolve, scheduled
from harness.core.results import EvalRecord, read_study
from harness.models.recipes import recipe
from harness.study.build import run_specs
from harness.validate.faults import AT, FAULTS, NONE, STEPS, studies
from harness.validate.induced import Verdict, label, summary, verdicts
from harness.validate.render import markdown
from tests.fakes.run_folders import write_fake_study


def evals(*scores: float) -> list[EvalRecord]:
    fields = {"sampled_tokens_cum": 0, "split": "validation", "task": "chain", "samples": 1, "reward_mean": 0.0}
    return [
        EvalRecord.model_validate(
            {**fields, "step": 5 * i, "score": s, "length_mean": 9.0, "truncated": 0.0, "questions": []}
        )
        for i, s in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "lost"),
    [((0.3, 0.8, 0.3, 0.3, 0.3), True), ((0.3, 0.8, 0.3, 0.41, 0.3), False), ((0.3, 0.1, 0.1, 0.1), True),
     ((0.3, 0.8, 0.3, 0.3), False), ((0.3, 0.1, 0.1), False), ((), False)],
)  # fmt: skip
def test_a_score_is_lost_when_the_last_three_are_under_half_of_the_best(scores: tuple[float, ...], lost: bool) -> None:
    assert label(evals(*scores)) is lost


def test_every_fault_takes_effect_half_way_and_is_shown() -> None:
    planned = studies(recipe("tiny"))
    assert len(planned) == len(FAULTS) + 1
    for name, (study, fault) in planned.items():
        assert name == study.name
        assert study.monitor.on_collapse == "record"
        for spec in run_specs(study):
            record = resolve(spec)
            before = scheduled(record, spec.recipe, spec.schedule, (AT * STEPS - 1) / STEPS)
            assert before == (record, spec.recipe)
            changed = scheduled(record, spec.recipe, spec.schedule, AT) != before
            assert changed is bool(fault.overrides)
            assert any("at 0.5 of the budget" in line for line in deviations(spec, record)) is changed


def test_there_are_two_seeds_of_each_fault_and_ten_healthy_runs() -> None:
    runs = {fault.name: len(run_specs(study)) for study, fault in studies(recipe("tiny")).values()}
    assert runs.pop(NONE.name) >= 10
    assert set(runs.values()) == {2}


def verdict(**changes: object) -> Verdict:
    fields: dict[str, object] = {
        "fault": "lr-x10", "arm": "GRPO", "seed": 0, "lost": True, "status": "collapsed", "base": 0.3, "before": 0.6,
        "final": 0.1, "risen": True, "step": 46, "verdict": "right", "first": "reward_collapse", "delay": 7,
        "events": ("reward_collapse (COLLAPSE, 47, 53)", "grad_spike (WARN, 48, 48)"), "before_fault": (),
        "collapses": 1, "healthy_steps": 45, "as_written": True,
    }  # fmt: skip
    return Verdict(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_is_counted_and_printed() -> None:
    healthy = {"fault": "healthy", "lost": False, "status": "completed", "step": None, "verdict": "clean"}
    found = summary(
        [
            verdict(),
            verdict(seed=1, verdict="neighbour", delay=9),
            verdict(seed=2, verdict="missed", first=None, delay=None, events=()),
            verdict(**healthy, events=(), collapses=0, healthy_steps=90, first=None, delay=None),
        ]
    )
    assert (found["faulty_runs"], found["healthy_runs"], found["collapse_events_in_healthy_runs"]) == (3, 1, 0)
    assert found["recall"]["value"] == pytest.approx(2 / 3)
    assert found["right_type"]["value"] == pytest.approx(1 / 3)
    assert found["delay_median"] == 8
    assert found["healthy_steps"] == 3 * 45 + 90
    assert found["label_and_status"] == {"score lost": {"collapsed": 3}, "score kept": {"completed": 1}}
    assert found["confusion"] == {"lr-x10": {"reward_collapse": 2, "none": 1}}
    text = markdown({"note": "n", "rules": {"x": 1}, "induced": found})
    assert "| `score lost` | 3 |" in text
    assert "0.667" in text


def test_recorded_runs_are_replayed_with_the_rules_of_today(tmp_path: Path) -> None:
    """The study's events.jsonl is not asked."""
    write_fake_study(tmp_path / "s", arms=("GRPO",), seeds=(0, 1), steps=100, collapsed=[("GRPO", 1)])
    found = {v.seed: v for v in verdicts(read_study(tmp_path / "s"), NONE)}
    assert (found[0].verdict, found[0].status, found[0].lost) == ("clean", "completed", False)
    assert (found[1].verdict, found[1].status, found[1].lost) == ("false alarm", "collapsed", True)
    assert any(e.startswith("reward_collapse (COLLAPSE, 6") for e in found[1].events)
