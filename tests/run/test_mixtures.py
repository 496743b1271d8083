"""Runs on the embedded mixtures of experts, from the settings of a study to what is left on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.torch import load_file

from harness.core.results import RESULT, SPEC, STEPS, read_lines
from harness.core.routing_log import ROUTING, read_routing
from harness.core.schema import schemas
from harness.core.spec import StudySpec
from harness.models.recipes import held_out, recipe
from harness.run import execute
from harness.study.build import Choices, build, run_specs
from harness.study.measure import choose_backend
from tests.fakes.small_runs import make_folder

SMALL = ("recipe.prompts_per_step=4", "eval.points=1", "eval.prompts=8", "eval.final_prompts=16")


def planned(**options: Any) -> StudySpec:
    choices = Choices(**{"preset": "moe", "seeds": (0,), "budget": {"steps": 2}, "sets": SMALL} | options)
    return build(choices, recipe, held_out, lambda spec: choose_backend(spec.model, {})[0]).spec


def test_the_study_of_replay_has_every_algorithm_under_every_mode() -> None:
    spec = planned(seeds=None, budget=None, sets=())
    modes = {(arm.algorithm, arm.overrides["routing_replay"]) for arm in spec.arms}
    assert modes == {(name, mode) for name in ("grpo", "gspo") for mode in ("off", "r2", "r3")}
    assert len(run_specs(spec)) == 18
    assert spec.reference_arm == spec.arms[0].name
    assert spec.arms[0].overrides["routing_replay"] == "off"
    assert (spec.backend.experts, spec.backend.routers) == ("grouped_mm", 2)


@pytest.mark.parametrize(
    ("arm", "model", "layers"),
    [("grpo", "tiny-moe", 2), ("gspo", "tiny-moe", 2), ("grpo", "tiny-moe-32", 4), ("ppo", "tiny-moe", 2)],
)
def test_a_run_ends_with_a_result_and_says_how_its_experts_computed(
    arm: str, model: str, layers: int, tmp_path: Path
) -> None:
    depth = (f"model.params.layers={layers}",) if layers != 2 else ()
    spec = planned(arms=(arm,), model=model, preset="quick", sets=(*SMALL, *depth))
    [run] = run_specs(spec)
    folder = make_folder(run, tmp_path)
    execute(run, folder)
    assert json.loads((folder / RESULT).read_text())["status"] == "completed"
    assert json.loads((folder / SPEC).read_text())["backend"]["experts"] == "grouped_mm"
    steps = [*read_lines(folder / STEPS)]
    assert len(steps) == 2
    gaps = [step["mismatch/abs_dlogp_max"] for step in steps]
    assert all(gap < 1e-3 for gap in gaps if gap is not None)  # null where the first update gave its own old log-probs
    routed = read_routing(folder)
    assert [r.step for r in routed] == ([] if arm == "ppo" else [1, 2])  # its critic warms up: no forward of the policy
    assert all(len(r.max_vio) == layers and r.gap_tokens == 0 for r in routed)
    validate = jsonschema.Draft202012Validator(schemas()["routing.schema.json"]).validate
    for row in read_lines(folder / ROUTING):
        validate(row)
    kept = load_file(folder / "rollouts" / "00000001.safetensors")
    positions = kept["prompt_ids"].ne(-1).sum(-1).max() + kept["mask"].shape[1]
    rows, width, depth_kept, k = kept["routes"].shape
    assert (rows, depth_kept, k) == (len(kept["mask"]), layers, 8 if model == "tiny-moe-32" else 2)
    assert width <= positions
    assert kept["sampler_routes"].shape == kept["routes"].shape


def test_another_backend_of_the_experts_is_another_run(tmp_path: Path) -> None:
    chosen, _ = choose_backend(planned().model, {"experts": "eager"})
    run = run_specs(planned())[0]
    other = run.model_copy(update={"backend": chosen})
    assert other.run_id != run.run_id
    folder = make_folder(other, tmp_path)
    execute(other, folder)
    assert json.loads((folder / RESULT).read_text())["status"] == "completed"
