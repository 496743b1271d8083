"""The metric dictionary is data that other parts rely on."""

import re

import pytest

from harness.core.errors import UsageError
from harness.core.metrics import (
    METRIC_COLUMNS,
    METRICS,
    WALLCLOCK_COLUMNS,
    describe,
    flat_keys,
    is_known,
    make_row,
    step_keys,
)


def test_columns_are_unique_and_safe_for_mlflow() -> None:
    keys = step_keys()
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", key) for key in keys)


def test_every_entry_says_what_it_is() -> None:
    assert all(m.formula and m.unit and m.aggregation for m in METRICS)
    assert describe("moe/max_vio").not_applicable == "dense model"
    assert describe("grad/noise_scale").not_applicable == "separate probe"


def test_update_time_keys_carry_three_suffixes() -> None:
    assert flat_keys(describe("clip/tok_low")) == ("clip/tok_low/first", "clip/tok_low/last", "clip/tok_low/max")
    assert describe("clip/tok_low/max").key == "clip/tok_low"
    assert flat_keys(describe("reward/mean")) == ("reward/mean",)


def test_wallclock_columns_are_all_of_perf() -> None:
    perf = {key for key in METRIC_COLUMNS if key.startswith("perf/")}
    assert perf | {"wallclock_s"} == WALLCLOCK_COLUMNS


def test_unknown_key_names_near_ones() -> None:
    with pytest.raises(UsageError, match="reward/mean"):
        describe("reward/meen")


def test_row_is_complete_ordered_and_closed() -> None:
    row = make_row({"step": 1}, {"reward/mean": 0.5, "penalty/kl/last": 0.1})
    assert list(row)[: len(step_keys())] == list(step_keys())
    assert (row["reward/mean"], row["len/mean"], row["penalty/kl/last"]) == (0.5, None, 0.1)
    assert not is_known("reward/men")
    with pytest.raises(AssertionError):
        make_row({"step": 1}, {"reward/men": 0.5})
