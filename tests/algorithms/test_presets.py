"""Presets, rosters, arms, overrides and the checks against a task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from algorithms import checks, rosters
from algorithms.arms import ARMS, arm, arm_overrides, build_arm
from algorithms.parts.surrogates import Clip
from harness.core.algorithm import Algorithm, component_matrix, difference, leaves, override
from harness.core.errors import UsageError
from harness.core.ports import TaskInfo
from harness.core.registry import algorithm, algorithm_names

SIX = ("ppo", "grpo", "dapo", "gspo", "gspo_token", "gfpo")
TASK = TaskInfo(name="sums", reward_range=(0.0, 1.0), threshold=1.0)

PUBLISHED: dict[str, dict[str, Any]] = {
    "ppo": {"ratio": "token", "surrogate.low": 0.2, "surrogate.high": 0.2, "surrogate.dual": None, "advantage": "gae"}
    | {"advantage.gamma": 1.0, "advantage.lam": 1.0, "aggregate": "token-mean", "penalties.kl.coef": 0.001}
    | {"penalties.kl.estimator": "k1", "penalties.kl.place": "reward"},
    "grpo": {"ratio": "token", "surrogate.low": 0.2, "surrogate.high": 0.2, "advantage.std": "unbiased"}
    | {"advantage.eps": 1e-6, "aggregate": "seq-mean-token-mean", "penalties.kl.coef": 0.04}
    | {"penalties.kl.estimator": "k3", "penalties.kl.place": "loss", "siblings": 8},
    "dapo": {"surrogate.low": 0.2, "surrogate.high": 0.28, "aggregate": "token-mean", "admission": "mixed"}
    | {"admission.max_rounds": 10, "admission.metric": "correct", "rewards": ["overlong"], "penalties": []},
    "gspo": {"ratio": "sequence", "surrogate.low": 3e-4, "surrogate.high": 4e-4, "penalties": []}
    | {"aggregate": "seq-mean-token-mean"},
    "gspo_token": {"ratio": "sequence_value", "surrogate.low": 3e-4, "surrogate.high": 4e-4, "penalties": []},
    "gfpo": {"siblings": 16, "selection": "shortest", "selection.k": 8, "surrogate.dual": 3.0}
    | {"advantage.std": "biased", "aggregate": "token-mean", "penalties.kl.coef": 0.001}
    | {"penalties.entropy.coef": 0.001},
}


@pytest.mark.parametrize("name", SIX)
def test_published_values(name: str) -> None:
    flat = leaves(algorithm(name))
    assert {path: flat[path] for path in PUBLISHED[name]} == PUBLISHED[name]
    assert flat["updates.mini_batches"] == 4


def test_presets_are_registered() -> None:
    assert {*SIX, "base", "random_reward", "rft", "grpo_batch_std"} <= set(algorithm_names())


def test_the_matched_roster_differs_only_in_what_defines_an_algorithm() -> None:
    grpo = build_arm("grpo")
    assert set(difference(grpo, build_arm("gspo"))) == {"ratio", "ratio.guard", "surrogate.low", "surrogate.high"}
    assert set(difference(grpo, build_arm("gfpo"))) == {"siblings", "selection", "selection.k"}
    dapo = difference(grpo, build_arm("dapo"))
    assert {p.split(".")[0] for p in dapo} == {"admission", "rewards", "surrogate", "aggregate"}
    for name in ARMS:
        record = build_arm(name)
        assert record.penalties == ()
        assert not record.needs & {"reference", "entropy"}
        assert getattr(record.surrogate, "dual", None) is None or name == "ppo_dualclip"
        assert getattr(record.selection, "k", record.siblings) == (1 if name == "ppo_siblings1" else 8)


@pytest.mark.parametrize("roster", rosters.ROSTERS)
@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_arm_builds_and_survives_a_round_trip(name: str, roster: str) -> None:
    record = build_arm(name, roster)
    assert Algorithm.model_validate(record.model_dump(mode="json")) == record
    assert override(algorithm(arm(name).algorithm), arm_overrides(name, roster)) == record


def test_unknown_names_list_near_ones() -> None:
    with pytest.raises(UsageError, match="gspo"):
        arm("gsppo")
    with pytest.raises(UsageError, match="matched"):
        rosters.overrides("machted", "grpo")
    with pytest.raises(UsageError, match=r"surrogate\.high"):
        override(algorithm("grpo"), {"surrogate.hihg": 0.28})
    with pytest.raises(UsageError, match="sequence"):
        override(algorithm("grpo"), {"ratio": "sequense"})


@pytest.mark.parametrize(
    "changes",
    [{"surrogate.high": 0.2}, {"penalties.entropy": None}, {"selection": "all"}, {"penalties.kl.coef": 0.04}],
)
def test_an_override_that_changes_nothing_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="changes nothing"):
        override(algorithm("grpo"), changes)


@pytest.mark.parametrize(
    "changes",
    [{"surrogate.dual": 0.5}, {"advantage.eps": -1.0}, {"selection": {"kind": "shortest", "k": 0}}],
)
def test_values_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        override(algorithm("grpo"), changes)


def test_impossible_records_are_refused() -> None:
    with pytest.raises(UsageError, match="siblings"):
        override(algorithm("grpo"), {"siblings": 1})
    with pytest.raises(UsageError, match="cannot keep more"):
        override(algorithm("gfpo"), {"siblings": 4})
    assert override(algorithm("ppo"), {"siblings": 1}).siblings == 1


def test_a_kind_and_its_fields_may_change_together() -> None:
    record = override(
        algorithm("grpo"), {"aggregate": "token-mean", "aggregate.scope": "group", "penalties.kl.coef": 0}
    )
    assert leaves(record)["aggregate.scope"] == "group"
    assert record.needs == frozenset()  # a KL of weight 0 provisions no reference


def test_calibration_freezes_the_range() -> None:
    record = build_arm("gspo_calibrated")
    assert isinstance(record.surrogate, Clip)
    assert record.surrogate.needs_calibration
    frozen = record.surrogate.calibrated(0.012)
    assert (frozen.low, frozen.high) == pytest.approx((0.012, 0.016))
    assert frozen.low / frozen.high == pytest.approx(3e-4 / 4e-4)
    assert not frozen.needs_calibration
    with pytest.raises(UsageError, match="drift"):
        record.surrogate.calibrated(0.0)


def test_brackets() -> None:
    assert {name for name in ARMS if ARMS[name].bracket == "dense"} == {name for name in ARMS if build_arm(name).dense}


def test_component_matrix_names_every_slot() -> None:
    matrix = component_matrix({name: build_arm(name, "published") for name in SIX})
    assert matrix["penalties"]["dapo"] == "none"
    assert "3.0" in matrix["surrogate"]["gfpo"]


def test_process_advantage_needs_a_task_with_credit() -> None:
    with pytest.raises(UsageError, match="process rewards"):
        checks.refusals_for(build_arm("grpo_process"), TASK)
    checks.refusals_for(build_arm("grpo"), TASK)


WITH_COMPONENTS = replace(TASK, components=("outcome", "style"))


@pytest.mark.parametrize(
    ("changes", "info", "words"),
    [
        ({}, TASK, ["normalize_then_sum", "the task declares none", "advantage=group"]),
        ({"advantage": "sum_then_normalize"}, TASK, ["sum_then_normalize", "the task declares none"]),
        ({"advantage.weights": {"outcome": 1.0, "stile": 0.5}}, WITH_COMPONENTS, ["'stile'", "did you mean style"]),
        ({"advantage.weights": {"outcome": 1.0}}, TASK, ["the task declares none"]),
    ],
)
def test_reward_components_are_checked_against_the_task(
    changes: dict[str, Any], info: TaskInfo, words: list[str]
) -> None:
    record = override(algorithm("gdpo"), changes) if changes else algorithm("gdpo")
    with pytest.raises(UsageError) as error:
        checks.refusals_for(record, info)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_components_that_the_task_declares_are_accepted() -> None:
    for changes in ({"advantage.eps": 1e-3}, {"advantage.weights": {"style": 2.0}}):
        checks.refusals_for(override(algorithm("gdpo"), changes), WITH_COMPONENTS)
    checks.refusals_for(algorithm("grpo"), TASK)


@pytest.mark.parametrize(
    ("base", "changes", "word"),
    [
        ("gfpo", {"selection": "token_efficiency"}, "graded"),
        ("grpo", {"updates.mini_batches": 1}, "every ratio is 1"),
        ("grpo", {"penalties.kl.estimator": "k1"}, "expected gradient is 0"),
        ("dapo", {"admission.metric": "reward"}, "metric=correct"),
    ],
)
def test_known_traps_are_told(base: str, changes: dict[str, Any], word: str) -> None:
    (told,) = checks.warnings_for(override(algorithm(base), changes), TASK)
    assert word in told
    assert checks.warnings_for(algorithm(base), TASK) == []
