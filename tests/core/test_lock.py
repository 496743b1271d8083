"""study.lock: what is declared before the first run, and what departs from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.core.lock import LOCK, declare, deviations, extended, read_lock, write_lock
from harness.core.results import read_study_spec
from harness.study.compare import extend_study, prepare_folder
from tests.fakes.run_folders import write_fake_study


def test_a_study_is_declared_before_its_first_run_and_never_again(tmp_path: Path) -> None:
    spec = write_fake_study(tmp_path / "other", ["GRPO", "DAPO"], range(3), 4)
    folder = prepare_folder(spec.model_copy(update={"name": "s"}), tmp_path)
    lock = read_lock(folder)
    assert lock is not None
    assert (lock.seeds, lock.stages, lock.alpha, lock.arms) == ((0, 1, 2), (3,), 0.05, ("GRPO", "DAPO"))
    assert deviations(lock, spec, None) == []
    before = (folder / LOCK).read_bytes()
    prepare_folder(spec.model_copy(update={"name": "s"}), tmp_path)
    assert (folder / LOCK).read_bytes() == before


def test_two_looks_cost_level_and_need_seven_seeds(tmp_path: Path) -> None:
    spec = write_fake_study(tmp_path / "s", ["GRPO", "DAPO"], range(7), 4)
    lock = declare(spec, two_stage=True)
    assert (lock.stages, lock.alpha) == ((7, 14), 0.0294)
    with pytest.raises(UsageError, match="fewer than 7"):
        declare(spec.model_copy(update={"seeds": (0, 1, 2)}), two_stage=True)


def test_what_was_not_declared_is_named(tmp_path: Path) -> None:
    spec = write_fake_study(tmp_path / "s", ["GRPO", "DAPO"], range(3), 4)
    lock = declare(spec)
    assert deviations(lock, spec.model_copy(update={"seeds": (0, 1, 2, 3)}), None) == ["4 seeds, declared 3"]
    assert "0.05, declared 0.02" in deviations(lock, spec.model_copy(update={"delta": 0.05}), None)[0]
    assert "arm DAPO was declared" in deviations(lock, spec.model_copy(update={"arms": spec.arms[:1]}), None)[0]
    assert "before the declaration" in deviations(lock, spec, "2000-01-01T00:00:00+00:00")[0]


def test_seeds_are_added_once_the_planned_ones_are_done(tmp_path: Path) -> None:
    spec = write_fake_study(tmp_path / "s", ["GRPO", "DAPO"], range(7), 4)
    with pytest.raises(UsageError, match=r"no study\.lock"):
        extend_study(tmp_path / "s", 7)
    write_lock(tmp_path / "s", declare(spec, two_stage=True))
    grown = extend_study(tmp_path / "s", 7)
    assert grown.seeds == tuple(range(14)) == read_study_spec(tmp_path / "s").seeds
    lock = read_lock(tmp_path / "s")
    assert lock is not None
    assert lock.extensions[0].seeds == tuple(range(7, 14))
    assert deviations(lock, grown, None) == []
    assert extend_study(tmp_path / "s", 7) == grown, "an unfinished extension is continued, not repeated"
    with pytest.raises(UsageError, match="14 runs are not finished"):
        extend_study(tmp_path / "s", 3)
    first = spec.model_copy(update={"name": "s"})
    assert prepare_folder(first, tmp_path) == tmp_path / "s", "the command that began the study still fits"


def test_an_edited_lock_is_refused(tmp_path: Path) -> None:
    spec = write_fake_study(tmp_path / "s", ["GRPO"], range(3), 4)
    write_lock(tmp_path / "s", extended(declare(spec), (3,)))
    text = (tmp_path / "s" / LOCK).read_text().replace('"alpha"', '"level"')
    (tmp_path / "s" / LOCK).write_text(text)
    with pytest.raises(UsageError, match="must not be edited"):
        read_lock(tmp_path / "s")
