"""What the figures P5, P6, P7 and P9 draw: numbers with a known answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.results import STEPS, read_study
from harness.monitor.detectors import (
    dead_signal,
    degenerate_text,
    entropy_collapse,
    kl_blowup,
    length_explosion,
    mismatch_blowup,
    ratio_explosion,
)
from harness.report import build_report, write_report
from harness.report.build import COLUMNS
from harness.report.curves import PANELS
from harness.report.lengths import ratio_by_length
from harness.report.plots import at_risk, front
from harness.report.trajectories import trajectories
from tests.fakes.run_folders import write_fake_study


def test_dotted_lines_are_the_limits_of_the_detectors() -> None:
    limits = {key: limit for key, *_, limit in PANELS if limit is not None}
    assert limits == {
        "entropy/exact": entropy_collapse.CERTAIN, "kl_ref/k3": kl_blowup.LIMIT,
        "ratio/ess_tok": ratio_explosion.ESS_LIMIT, "len/trunc_rate": length_explosion.LIMIT,
        "text/rep_rate": degenerate_text.LIMIT, "signal/zero_var_frac": dead_signal.LIMIT,
        "value/explained_var": 0.0, "mismatch/k3": mismatch_blowup.K3_LIMIT,
    }  # fmt: skip


def with_lengths(study: Path, slope: float, late: int = 3) -> None:
    """Adds bins of length to every run: SD(sum) = .1 L^slope, SD(mean) = SD(sum) / L; the last bin comes late."""
    for run in read_study(study).runs:
        file = run.path / STEPS
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            for upper in (8, 16, 32, 64):
                if upper == 64 and row["step"] < late:
                    continue
                middle, n = upper / 2**0.5, 12
                sd = 0.1 * middle**slope * ((n - 1) / n) ** 0.5  # as the step log has it, without Bessel's correction
                row |= {f"ratio/by_length/{upper}/{k}": v for k, v in
                        (("rows", n), ("full_logsd", sd), ("geo_logsd", sd / middle), ("ess_tok", 0.9))}  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_slope_of_the_noise_over_length_is_recovered(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_fake_study(study, ["GRPO", "GSPO"], [0, 1, 2], 12)
    with_lengths(study, 0.5)
    report = build_report(read_study(study, COLUMNS))
    found = report["ratio_by_length"]["GRPO"]
    assert [b["upper"] for b in found["bins"]] == [8, 16, 32, 64], "also the bin that the first step lacks"
    assert found["slopes"]["full_logsd"]["value"] == pytest.approx(0.5, abs=1e-9)
    assert found["slopes"]["geo_logsd"]["value"] == pytest.approx(-0.5, abs=1e-9)
    assert found["slopes"]["ess_lost"]["value"] == pytest.approx(0, abs=1e-9)
    assert len(found["slopes"]["full_logsd"]["runs"]) == 3
    middle = found["bins"][1]
    assert middle["full_logsd"]["value"] == pytest.approx(0.1 * (16 / 2**0.5) ** 0.5), "Bessel's correction over a run"
    slow = ratio_by_length({"GRPO": read_study(study).of("GRPO")}, {r.path.name for r in read_study(study).runs})
    assert slow["GRPO"] == found, "rows read as columns and rows read one by one agree"


def test_too_few_lengths_give_no_slope(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_fake_study(study, ["GRPO", "GSPO"], [0, 1, 2], 12)
    assert build_report(read_study(study, COLUMNS))["ratio_by_length"] == {}
    with_lengths(study, 0.5)
    for run in read_study(study).runs:
        kept = "".join(line.replace("/32/", "/33/").replace("/64/", "/65/") + "\n" for line in
                       (run.path / STEPS).read_text().splitlines()[:2])  # fmt: skip
        (run.path / STEPS).write_text(kept)
    assert build_report(read_study(study, COLUMNS))["ratio_by_length"] == {}, "24 rows of a bin are too few"


def test_the_fit_of_score_on_entropy_is_recovered(report: dict[str, Any]) -> None:
    steps = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    x = list(np.arange(1.0, 31.0))
    entropy = [0.7 * np.exp(-0.1 * v) for v in x]
    score = [0.9 - 0.3 * float(np.exp(entropy[int(s)])) for s in steps]
    line = {"run": "r", "seed": 0, "counted": True, "step": steps, "score": score}
    panel = {"key": "entropy/exact", "arms": {"GRPO": [{"run": "r", "seed": 0, "x": x, "y": entropy}]}}
    found = trajectories({"arms": {"GRPO": {"runs": [line]}}}, [panel])["GRPO"]
    assert found["a"]["value"] == pytest.approx(0.3, rel=1e-4)
    assert found["b"]["value"] == pytest.approx(0.9, rel=1e-4)
    assert found["r2"]["value"] == pytest.approx(1.0)
    assert found["a"]["low"] is None, "one run"
    assert set(report["trajectories"]) == set(report["curves"]["arms"])


def test_nothing_on_the_front_is_beaten_in_cost_and_score() -> None:
    assert front([(3.0, 0.5), (1.0, 0.2), (2.0, 0.6), (2.0, 0.4), (5.0, 0.7)]) == [(1.0, 0.2), (2.0, 0.6), (5.0, 0.7)]


def test_every_figure_is_also_a_file(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_fake_study(study, ["PPO", "GRPO"], [0, 1, 2], 12, collapsed=[("PPO", 1)])
    with_lengths(study, 0.5)
    folder = write_report(study)["figures"]
    names = {p.stem for p in folder.glob("*.svg")}
    assert names == {p.stem for p in folder.glob("*.png")}
    assert names >= {"learning-sampled_tokens", "forest", "profile", "survival", "entropy-score", "scatter-wallclock_s",
                     "scatter-length", "length-full-logsd", "length-geo-logsd", "length-ess-lost"}  # fmt: skip


def test_numbers_at_risk_are_runs_that_had_neither_collapsed_nor_ended() -> None:
    """P4: three runs; one collapsed at 40, one ended at 70, one is not counted."""
    runs = [
        {"arm": "A", "counted": True, "sampled_tokens": 100, "collapse_tokens": 40},
        {"arm": "A", "counted": True, "sampled_tokens": 70, "collapse_tokens": None},
        {"arm": "A", "counted": True, "sampled_tokens": 100, "collapse_tokens": None},
        {"arm": "A", "counted": False, "sampled_tokens": 100, "collapse_tokens": None},
        {"arm": "B", "counted": True, "sampled_tokens": 100, "collapse_tokens": None},
    ]
    assert [at_risk({"runs": runs}, "A", t) for t in (0, 40, 41, 70, 71, 100)] == [3, 3, 2, 2, 1, 1]
