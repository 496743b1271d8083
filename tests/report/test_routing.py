"""The report of a mixture of experts: numbers by hand from routing.jsonl, and the heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.results import append_line, read_study, to_json
from harness.core.routing_log import ROUTING, Gap, RoutingRecord
from harness.report.answer import caveats
from harness.report.build import build_report
from harness.report.figures import svg
from harness.report.html import render
from harness.report.markdown import render as render_markdown
from harness.report.routing import BINS, heat_map, routing
from tests.fakes.run_folders import write_fake_study

STEPS, LAYERS = 50, 3
ARMS = ("GRPO", "GSPO")
MODES = {"GRPO": "r2", "GSPO": "off"}


def record(arm: str, seed: int, step: int) -> RoutingRecord:
    rng = np.random.default_rng((len(arm), ord(arm[1]), seed, step))
    change = tuple(float(x) for x in rng.random(LAYERS) / 10)
    replayed = MODES[arm] != "off"
    return RoutingRecord(
        step=step, mode=MODES[arm], expert_change=change, since_start=change,
        selections=() if step == 1 else (change, tuple(2 * x for x in change)), tokens=(), anywhere=(0.1, 0.1 + seed),
        sampler=None, max_vio=change, dead_experts=change, route_entropy=change,
        replay_bytes=2048 * replayed, bytes_per_token=12, gap_tokens=int(step == 7),
        gaps=(Gap(prompt_id="q", sample=0, token=1, gap=0.01, margin=1e-6, flipped=None),) if step == 7 else (),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("routed")
    write_fake_study(folder, ARMS, seeds=(0, 1, 2), steps=STEPS)
    for run in read_study(folder).runs:
        for step in range(1, STEPS + 1):
            append_line(run.path / ROUTING, to_json(record(run.spec.arm, run.spec.seed, step)))
    return build_report(read_study(folder))


def test_estimates_are_means_over_steps_and_seeds(report: dict[str, Any]) -> None:
    for arm in ARMS:
        facts = report["routing"][arm]
        runs = [[record(arm, seed, step) for step in range(1, STEPS + 1)] for seed in range(3)]
        assert (facts["mode"], facts["layers"]) == (MODES[arm], LAYERS)
        found = {key: value["value"] for key, value in facts["estimates"].items()}
        change = np.mean([np.mean([r.expert_change for r in run if r.expert_change]) for run in runs])
        assert found["expert_change"] == pytest.approx(change)
        last = np.mean([np.mean([r.selections[-1] for r in run if r.selections]) for run in runs])
        assert found["selections"] == pytest.approx(last)
        assert found["anywhere"] == pytest.approx(1.1)
        assert found["gap_tokens"] == 1
        assert found["sampler"] is None
        assert found["replay_bytes"] == (2 if arm == "GRPO" else 0), "KiB"


def test_the_heat_map_is_the_mean_by_layer_and_bin(report: dict[str, Any]) -> None:
    heat = report["routing"]["GRPO"]["heat"]
    grid = np.array(heat["change"])
    assert grid.shape == (LAYERS, BINS)
    for at in (0, 17, BINS - 1):
        steps = [s for s in range(1, STEPS + 1) if (s - 1) * BINS // STEPS == at]
        want = np.mean([record("GRPO", seed, s).expert_change for s in steps for seed in range(3)], axis=0)
        assert grid[:, at] == pytest.approx(want, abs=1e-6)
    plot = heat_map(report)
    assert plot is not None
    drawn = svg(plot)
    assert drawn.count("Layer") == 2
    assert "data:image" not in drawn, "the page shows no pictures from elsewhere"


def test_mode_and_cost_stand_in_every_rendering(report: dict[str, Any]) -> None:
    table = routing(report)
    assert [c["t"] for c in table["groups"][0]["rows"][0]][1] in ("R2: the trainer's", "free")
    for page in (render(report), render_markdown(report)):
        assert "Routes through the experts" in page
        assert "12 bytes/token" in page


def test_the_page_says_what_free_routes_are_reported_to_do(report: dict[str, Any]) -> None:
    """Only of a token ratio with free routes: neither of one that replays nor of a sequence ratio."""
    depth, said = [c for c in report["caveats"] if c.startswith(("Routing", "Experts"))]
    assert depth == "Experts: 3 layers with a router; more routes move in deeper models."
    assert said.startswith("Routing: GSPO: token-level"), "the stand-in study has token ratios everywhere"
    row = {"slot": "ratio", "cells": [{"arm": a, "text": t} for a, t in (("GRPO", "token(guard=20.0)"),
                                                                        ("GSPO", "sequence(guard=10.0)"))]}  # fmt: skip
    known = caveats({**report, "components": {"rows": [row]}})
    assert not [c for c in known if c.startswith("Routing")]


def test_a_dense_study_has_no_such_section(tmp_path: Path) -> None:
    write_fake_study(tmp_path, ARMS, seeds=(0, 1, 2))
    report = build_report(read_study(tmp_path))
    assert report["routing"] == {}
    assert heat_map(report) is None
    assert "Routes through" not in render(report)
