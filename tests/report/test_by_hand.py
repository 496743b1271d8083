"""Folders written by hand from results/README.md, without our records: numbers against an independent computation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from tests.cli.test_usage import run

PROVENANCE = {
    "harness_version": "by hand", "numerics_version": 1, "python": "3", "packages": {}, "platform": "p", "cpu": "c",
    "num_cpus": 1, "started": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
SHARED: dict[str, Any] = {
    "task": {"name": "sums"}, "model": {"name": "net"}, "recipe": {}, "budget": {"sampled_tokens": 1000},
    "eval": {"points": 2, "prompts": 4, "final_prompts": 4},
}  # fmt: skip


def write_study(path: Path, arms: list[str], seeds: list[int], **changes: Any) -> None:
    """study.yaml."""
    path.mkdir(parents=True, exist_ok=True)
    study = {"name": path.name, **SHARED, "arms": [{"name": a, "algorithm": "grpo"} for a in arms], "seeds": seeds}
    (path / "study.yaml").write_text(yaml.safe_dump({**study, "reference_arm": arms[0], **changes}))


def write_run(path: Path, arm: str, seed: int, status: str = "completed", **result: Any) -> Path:
    """A run folder with what must be there: spec.json and result.json."""
    folder = path / "runs" / f"{arm}-{seed}"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(
        json.dumps({"numerics_version": 1, "arm": arm, "algorithm": "grpo", "seed": seed, **SHARED})
    )
    data = {
        "run_id": folder.name, "status": status, "steps": 10, "optimizer_steps": 10, "sampled_tokens": 1000,
        "trained_tokens": 900, "wallclock_s": 1.0, "base_score": 0.2, "final_score": 0.5, "best_validation": None,
        "peak_memory_mib": None, "memory_after_import_mib": None, "parameters": 10, "algorithm_resolved": {},
        "deviations": [], "provenance": PROVENANCE, **result,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(data))
    return folder


def write_eval(folder: Path, step: int, split: str, correct: list[int], samples: int = 4) -> float:
    """One line of evals.jsonl; its score."""
    score = sum(c / samples for c in correct) / len(correct)
    record = {
        "step": step, "sampled_tokens_cum": 100 * step, "split": split, "task": "sums", "samples": samples,
        "score": score, "reward_mean": score, "length_mean": 5.0, "truncated": 0.0,
        "questions": [{"id": f"q{i}", "n": samples, "correct": c} for i, c in enumerate(correct)],
    }  # fmt: skip
    with (folder / "evals.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    return score


def report_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *studies: Path, code: int = 0
) -> dict[str, Any]:
    """What `harness report STUDY... --json` prints."""
    assert run(monkeypatch, "report", *map(str, studies), "--json") == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def arm_of(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(a for a in report["arms"] if a["name"] == name)


def draw(seeds: list[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shared = rng.normal(0.5, 0.1, len(seeds))
    means = {"A": 0.0, "B": 0.06, "C": 0.004}
    return {a: shared + m + rng.normal(0, 0.015, len(seeds)) for a, m in means.items()}


def test_scores_differences_and_labels_of_seven_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spec and result alone: no steps, evaluations, events or samples."""
    seeds = [3, 5, 8, 13, 21, 34, 55]
    scores = draw(seeds)
    write_study(tmp_path / "s", ["A", "B", "C"], seeds)
    for arm, found in scores.items():
        for seed, score in zip(seeds, found, strict=True):
            write_run(tmp_path / "s", arm, seed, final_score=float(score))
    report = report_of(monkeypatch, capsys, tmp_path / "s")
    for arm, found in scores.items():
        score, gain = arm_of(report, arm)["score"], arm_of(report, arm)["gain"]
        low, high = stats.t.interval(0.95, 6, found.mean(), stats.sem(found))
        assert [score["value"], score["low"], score["high"], score["n"]] == pytest.approx([found.mean(), low, high, 7])
        assert gain["value"] == pytest.approx(found.mean() - 0.2)
        assert arm_of(report, arm)["iqm"]["value"] == pytest.approx(stats.trim_mean(found, 0.25))
        assert arm_of(report, arm)["median"]["value"] == pytest.approx(found.mean()), "median over tasks: one task"
    holm = multipletests([stats.ttest_rel(scores[a], scores["A"]).pvalue for a in "BC"], method="holm")[1]
    for c, p in zip(report["comparisons"], holm, strict=True):
        d = scores[c["a"]] - scores["A"]
        low, high = stats.t.interval(0.95, 6, d.mean(), stats.sem(d))
        assert [c["value"], c["low"], c["high"]] == pytest.approx([d.mean(), low, high])
        assert c["p_adjusted"] == pytest.approx(p)
        flips = [abs((np.array(signs) * d).sum()) >= abs(d.sum()) - 1e-12 for signs in product((1, -1), repeat=7)]
        assert c["p_sign_flip"] == pytest.approx(np.mean(flips))
        assert c["p_tost"] == pytest.approx(ttost_paired(scores[c["a"]], scores["A"], -0.02, 0.02)[0])
        assert c["rho"] == pytest.approx(np.corrcoef(scores[c["a"]], scores["A"])[0, 1])
        wins = scores[c["a"]][:, None] > scores["A"]
        assert c["improvement"]["value"] == pytest.approx(wins.mean())
    assert {c["a"]: c["label"] for c in report["comparisons"]}["B"] == "A>B"
    assert report["answer"]["status"] == "decided"
    assert all(Path(p).exists() for p in report["files"].values())


def test_collapses_failures_and_gaps_are_counted_and_move_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = list(range(6))
    write_study(tmp_path / "s", ["A", "B"], seeds)
    a = {s: 0.50 + 0.01 * s for s in seeds}
    b = {s: 0.60 + 0.01 * s for s in seeds}
    for seed in seeds:
        write_run(tmp_path / "s", "A", seed, final_score=a[seed])
    write_run(tmp_path / "s", "B", 0, "collapsed", final_score=0.04)
    no_end = write_run(tmp_path / "s", "B", 1, "collapsed", final_score=None)  # its last evaluation speaks
    write_eval(no_end, 0, "test", [1, 1, 1, 1])
    last = write_eval(no_end, 7, "validation", [0, 1, 0, 0])
    write_run(tmp_path / "s", "B", 2, "collapsed", final_score=None)  # nothing usable: an always-wrong policy
    write_run(tmp_path / "s", "B", 3, "infra_failed", final_score=None, base_score=None, error="disk full")
    write_run(tmp_path / "s", "B", 4, "no_learning", final_score=b[4])
    report = report_of(monkeypatch, capsys, tmp_path / "s")  # B 5 was never started
    scores = [0.04, last, 0.0, b[4]]
    row = arm_of(report, "B")
    assert row["score"]["value"] == pytest.approx(np.mean(scores))
    assert row["score"]["low"] is None
    assert row["score_survivors"]["value"] == pytest.approx(b[4])
    low, high = proportion_confint(3, 4, method="jeffreys")
    assert [row["collapse"][k] for k in ("k", "n", "low", "high")] == pytest.approx([3, 4, low, high])
    assert report["tally"] | {"by_validity": 0} == report["tally"] | {
        "by_validity": 0, "completed": 6, "collapsed": 3, "infra_failed": 1, "no_learning": 1, "missing": 1,
        "planned": 12, "started": 11, "sampled_tokens": 11_000,
    }  # fmt: skip
    c = report["comparisons"][0]
    assert c["n"] == 4
    assert c["value"] == pytest.approx(np.mean(scores) - np.mean([a[s] for s in (0, 1, 2, 4)]))
    assert c["label"] not in ("A>B", "B>A")
    test = c["collapse_test"]
    assert test["p_barnard"] == pytest.approx(stats.barnard_exact([[3, 0], [1, 6]]).pvalue)
    assert test["p_mcnemar"] == pytest.approx(stats.binomtest(3, 3).pvalue)
    assert row["two_part"]["value"] == pytest.approx(np.mean(scores))


def test_ten_seeds_curves_and_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations without steps: the max-|t| test, areas under curves, evaluation noise, tokens to a threshold."""
    seeds, rng = list(range(10)), np.random.default_rng(3)
    write_study(tmp_path / "s", ["A", "B"], seeds)
    final: dict[str, list[float]] = {"A": [], "B": []}
    noise = []
    for arm, top in (("A", 0.5), ("B", 0.75)):
        for seed in seeds:
            correct = [int(c) for c in rng.binomial(4, top, 4)]
            folder = write_run(tmp_path / "s", arm, seed, final_score=float(np.mean(correct) / 4))
            write_eval(folder, 0, "test", [1, 1, 0, 0])
            for step, share in ((2, 1), (6, 2), (10, 3)):
                write_eval(folder, step, "validation", [share if arm == "B" else 1] * 4)
            final[arm].append(write_eval(folder, 10, "test", correct))
            noise.append(np.std(np.array(correct) / 4, ddof=1) / 2)
    report = report_of(monkeypatch, capsys, tmp_path / "s")
    c = report["comparisons"][0]
    assert c["value"] == pytest.approx(np.mean(final["B"]) - np.mean(final["A"]))
    assert c["test"].startswith("max-|t|")
    d = np.array(final["B"]) - np.array(final["A"])
    flips = np.array(list(product((1, -1), repeat=10))) * d
    t = np.abs(flips.mean(1)) / (flips.std(1, ddof=1) / np.sqrt(10))
    assert c["p_exchange"] == pytest.approx(np.mean(t >= t[0] * (1 - 1e-9)))
    x = np.log([200, 600, 1000])
    area = np.trapezoid([0.25, 0.5, 0.75], x) / (x[-1] - x[0])
    assert c["auc"]["value"] == pytest.approx(area - 0.25)
    half = next(t for t in report["thresholds"] if t["share"] == 0.5)
    assert half["score"] == pytest.approx(0.375)
    assert half["arms"]["B"]["sampled_tokens"]["median"] == pytest.approx(400), "halfway from .25 to .5"
    assert half["arms"]["A"]["sampled_tokens"]["reached"] == 0
    assert [r["eval_se"] for r in report["runs"]] == pytest.approx(noise)
