"""Every golden case through `harness conform`, and the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.parts.selection import Shortest
from harness.commands.conform import FAILED, run_conform
from harness.conform import losses, records
from harness.conform.cases import BUNDLED, case_files, load
from harness.conform.check import METRICS, OUR_SKETCH, SKETCHES, check, compare, find_loss
from harness.conform.suites import LOSS_SUITES, SUITES
from harness.core.errors import UsageError
from harness.core.shapes import Tensor
from harness.train.objective import batch_totals, policy_loss
from tests.architecture.source import ROOT

FILES = case_files(None)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES])
def test_every_output_agrees(path: Path) -> None:
    done = compare(load(path))
    assert not done.failed, {name: done.errors[name] for name in done.failed}
    assert set(done.errors) == set(done.case.expected) - SKETCHES


def test_every_suite_has_cases_and_an_adapter() -> None:
    assert {path.stem.split("__")[0] for path in FILES} == set(SUITES)
    assert (len(FILES), len(SUITES), len(LOSS_SUITES)) == (402, 67, 40)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith("gspo_verl__")], ids=lambda p: p.stem)
def test_a_pure_sequence_ratio_matches_verl_too(path: Path) -> None:
    case = load(path)
    algorithm = records.verl_group(case.hyper).model_copy(update={"ratio": records.record(ratio="sequence").ratio})
    view = losses.advantage_input(case, case.mask)
    done = losses.run(case, algorithm, algorithm.advantage(view).advantages, case.mask)
    torch.testing.assert_close(done.grad, case.expected["grad_logp"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith("gfpo_paper_shortest")], ids=lambda p: p.stem)
def test_the_selection_part_keeps_what_the_score_keeps(path: Path) -> None:
    case = load(path)
    kept = Shortest(k=case.hyper["k"])(losses.row_view(case), ()).kept
    assert kept.nonzero()[:, 0].tolist() == case.expected["kept_index"].tolist()


def test_masked_garbage_gets_no_gradient() -> None:
    for path in FILES:
        case = load(path)
        if case.suite in LOSS_SUITES and "mask" in case.given:
            assert not case.expected["grad_logp"][~case.mask].any()  # so a gradient there is an error of ours


def altered(path: Path, target: Path, **changes: object) -> None:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    meta = json.loads(str(arrays["meta"]))
    for name, value in changes.items():
        if name in meta:
            meta[name] = value
        else:
            arrays[name] = np.asarray(value)
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(target, **arrays)  # type: ignore[arg-type]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = BUNDLED / "grpo_trl__ragged.npz"
    altered(source, tmp_path / "grpo_trl__a.npz")
    assert run_conform(tmp_path, None, (), True) == 0
    found = json.loads(capsys.readouterr().out)
    assert {k: found[k] for k in ("ok", "cases", "passed")} == {"ok": True, "cases": 1, "passed": 1}
    (suite,) = found["suites"]
    assert set(suite) == {"suite", "cases", "passed", "max_error", "tol", "failed"}
    altered(source, tmp_path / "grpo_trl__b.npz", out__loss=7.0)
    assert run_conform(tmp_path, None, (), True) == FAILED
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["cases"], found["passed"]) == (False, 2, 1)
    assert found["suites"][0]["failed"] == ["grpo_trl__b: loss"]


@pytest.mark.system("python:fastdigest")
def test_agreement_of_sketches_is_reported_and_never_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_conform(None, None, ("gfpo_adaptive_k",), False) == 0
    said = capsys.readouterr().out
    for sketch in ("the quantile sketch of crick", "the quantile sketch of tdigest", "our t-digest"):
        assert f"k by {sketch} equals k by our exact quantiles on" in said
    (result,) = check(FILES, only=("gfpo_adaptive_k",))
    assert 0.9 < result.agreement[OUR_SKETCH] < 1, "close, but an estimate"


def test_a_digest_that_cannot_be_computed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastdigest", None)
    assert run_conform(None, None, ("gfpo_adaptive_k",), False) == 0
    assert "our t-digest was not compared: fastdigest is not installed" in capsys.readouterr().out


def test_an_output_that_we_do_not_give_fails(tmp_path: Path) -> None:
    altered(BUNDLED / "grpo_trl__ragged.npz", tmp_path / "x.npz", out__something=1.0)
    (result,) = check([tmp_path / "x.npz"])
    assert result.failed == ("x: something",)


def test_nan_and_other_shapes_fail(tmp_path: Path) -> None:
    altered(BUNDLED / "grpo_trl__ragged.npz", tmp_path / "x.npz", out__loss=float("nan"))
    altered(BUNDLED / "grpo_trl__ragged.npz", tmp_path / "y.npz", out__loss=[1.0])
    (result,) = check(sorted(tmp_path.glob("*.npz")))
    assert result.passed == 0


def test_an_unknown_suite_is_an_error(tmp_path: Path) -> None:
    altered(BUNDLED / "grpo_trl__ragged.npz", tmp_path / "x.npz", suite="grpo_trll")
    with pytest.raises(UsageError, match="grpo_trl"):
        check([tmp_path / "x.npz"])
    with pytest.raises(UsageError, match="none is skipped"):
        check(FILES[:1], only=("nope",))


def test_wrong_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.npz"):
        case_files(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        case_files(tmp_path / "nowhere")
    (tmp_path / "x.npz").write_text("no archive")
    with pytest.raises(UsageError, match="golden case"):
        load(tmp_path / "x.npz")


def test_without_a_checkout_a_folder_must_be_named(tmp_path: Path) -> None:
    """The packages alone, as a wheel installs them; a folder that is named works there too."""
    for name in ("harness", "algorithms", "tasks"):
        for file in (ROOT / name).rglob("*.py"):
            target = tmp_path / "site" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def conform(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from harness.cli import main; main()", "conform", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120, check=False
        )

    refused = conform()
    assert refused.returncode == 2, refused.stderr
    for words in ("conform without a folder", "installed without a checkout", "harness conform DIR"):
        assert words in refused.stderr
    assert str(tmp_path) not in refused.stderr
    named = conform(str(BUNDLED), "--suite", "grpo_trl")
    assert named.returncode == 0, named.stderr
    assert "6 of 6 cases" in named.stdout


def theirs(inputs: dict[str, Tensor], hyper: dict[str, object]) -> Tensor:
    """A loss as a third party would write it: TRL's GRPO."""
    mask, a = inputs["mask"].bool(), inputs["advantages"][:, None]
    ratio = torch.where(mask, inputs["logp"] - inputs["old_logp"], 0.0).exp()
    loss = -torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a)
    d = torch.where(mask, inputs["logp"] - inputs["ref_logp"], 0.0)
    loss = loss + 0.04 * ((-d).exp() + d - 1)
    per_row = torch.where(mask, loss, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return per_row.mean()


def wrong(inputs: dict[str, Tensor], hyper: dict[str, object]) -> Tensor:
    return theirs(inputs, hyper) * 0.5


def test_a_third_partys_loss() -> None:
    (right,) = check(FILES, theirs, ("grpo_trl",))
    assert (right.cases, right.passed) == (6, 6)
    (bad,) = check(FILES, wrong, ("grpo_trl",))
    assert bad.passed == 0
    assert find_loss("tests.golden.test_golden:theirs").__name__ == "theirs"
    with pytest.raises(UsageError, match="cannot be imported"):
        find_loss("tests.golden.test_golden:nothing")
    with pytest.raises(UsageError, match="scalar"):
        check(FILES, lambda inputs, hyper: inputs["logp"], ("grpo_trl",))


def test_our_parts_as_a_third_partys_loss() -> None:
    def ours(inputs: dict[str, Tensor], hyper: dict[str, object]) -> Tensor:
        mask = inputs["mask"].bool()
        return policy_loss(
            records.verl_group(hyper),
            logp=inputs["logp"],
            old_logp=inputs["old_logp"],
            ref_logp=inputs["ref_logp"],
            entropy=None,
            advantages=inputs["advantages"],
            mask=mask,
            totals=batch_totals(mask),
        ).loss

    assert all(r.passed == r.cases for r in check(FILES, ours, ("dapo_verl", "grpo_verl_paper")))


def test_clip_fractions_have_their_own_tolerance() -> None:
    case = load(BUNDLED / "grpo_trl__ragged.npz")
    done = compare(replace(case, tol_metrics=0.0, tol=0.0))
    assert METRICS & set(done.errors)
    assert done.tolerance("loss") == 0.0


def test_a_loss_that_raises_is_a_failed_case_not_a_crash() -> None:
    def broken(inputs: dict[str, torch.Tensor], hyper: dict[str, object]) -> torch.Tensor:
        raise KeyError("no such input")

    (result,) = check(case_files(None), broken, ("grpo_trl",))
    assert result.passed == 0
    assert all("raised KeyError" in line for line in result.failed)
