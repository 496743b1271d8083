"""Options -> a checked study: bad input is refused with a way out, and names are stable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UsageError
from harness.core.registry import algorithm as preset
from harness.core.resolve import deviations, resolve, resolve_algorithm
from harness.core.spec import BackendSpec, Recipe, StudySpec, stable_hash
from harness.models.recipes import held_out, recipe
from harness.study.arms import apply_changes, build_arm
from harness.study.build import Choices, Planned, build, run_specs
from harness.study.compare import plan_runs, prepare_folder
from harness.study.measure import choose_backend
from harness.study.presets import load_preset, preset_names

SMALL = Choices(preset="quick", arms=("grpo", "gspo"), seeds=(0, 1), budget={"steps": 3})


def planned(choices: Choices = SMALL, **changes: Any) -> Planned:
    return build(replace(choices, **changes), recipe, held_out, lambda spec: BackendSpec(threads=1))


def study_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def questions(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} +1 ?", "answer": i}) + "\n" for i in range(40)))
    return {"name": str(path)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": ("gpro",)}, "or grpo"),
        ({"arms": ("grpo", "grpo")}, "GRPO more than once"),
        ({"arms": ()}, "no arms to run"),
        ({"arms": ("gspo_token",)}, "identical to GSPO"),
        ({"sets": ("GRPO:siblings=1",)}, "algorithm ppo, whose critic replaces the siblings"),
        ({"sets": ("siblings=0",)}, "siblings=0"),
        ({"sets": ("GRPO:surrogate.hihg=0.3",)}, "did you mean surrogate.high"),
        ({"sets": ("surrogate.hihg=0.3",)}, "no arm has such a path"),
        ({"sets": ("GRPO:surrogate.high=0.27",)}, "changes nothing"),
        ({"sets": ("updates.mini_batches=4",)}, "nothing would change"),
        ({"sets": ("PPO:surrogate.high=0.3",)}, "no arm is called 'PPO'"),
        ({"sets": ("GRPO:surrogate.high=-1",)}, "greater than or equal to 0"),
        ({"sets": ("surrogate.high",)}, "the form path=value"),
        ({"sets": ("recipe.lr=fast",)}, "recipe: lr = 'fast'"),
        ({"sets": ("recipe.lrr=1",)}, "did you mean lr"),
        ({"sets": ("eval.pionts=1",)}, "did you mean points"),
        ({"sets": ("monitor.on_colapse=stop",)}, "did you mean on_collapse"),
        ({"sets": ("monitor.on_collapse=never",)}, "stop_on_fatal"),
        ({"sets": ("delta=-1",)}, "delta = -1"),
        ({"sets": ("model.name=3",)}, "model: name = 3"),
        ({"budget": {"steps": 0}}, "steps = 0"),
        ({"budget": {"sampled_tokens": 0}}, "sampled_tokens = 0"),
        ({"budget": {}}, "a budget needs sampled_tokens or steps"),
        ({"seeds": ()}, "at least one run per arm"),
        ({"rosters": ("best",)}, "choose one of: matched, published"),
        ({"preset": "quikc"}, "did you mean quick"),
        ({"preset": "nowhere/study.yaml"}, "there is no such file"),
        ({"task": {"name": "chian"}}, "chain"),
        ({"task": {"params": {"min_opps": 3}}}, "min_ops"),
        ({"backend": {"dtype": "float8"}}, "backend: dtype = 'float8'"),
        ({"task": {"params": {"credit": False}}, "arms": ("grpo_process",)}, "grades whole responses only"),
        ({"task": {"params": {"credit": False}}, "arms": ("gspo", "gspo_token")}, "add --run-equivalent"),
        ({"arms": ("gdpo",)}, "the task declares none"),
        ({"arms": ("grpo",), "sets": ("advantage=sum_then_normalize",)}, "the task declares none"),
        ({"arms": ("ppo_trl",)}, "after the last token"),
    ],
)
def test_wrong_choices_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(**changes)
    assert expected in str(error.value), str(error.value)
    assert error.value.instead


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: quick\nsead: 3\n", "did you mean seeds"),
        ("extends: quick\nseeds: 3\n", "seeds: [3]"),
        ("extends: quick\narms: grpo\n", "arms: [grpo]"),
        ("extends: quick\nseeds: [a]\n", "seeds.0"),
        ("extends: quick\nseeds: [-1]\n", "different whole numbers from 0 on"),
        ("extends: quick\nseeds: [1, 1]\n", "different whole numbers from 0 on"),
        ("arms: [grpo]\n", "no task"),
        ("extends: quack\n", "did you mean quick"),
        ("extends: quick\nschedule: [{at: 2, overrides: {}}]\n", "schedule.0.at"),
        ("extends: quick\nschedule: [{at: 0.5, overrides: {surrogate.hihg: 1}}]\n", "did you mean surrogate.high"),
        (
            "extends: quick\narms: [grpo]\ncontrols: []\nschedule:\n"
            "- {at: 0.5, overrides: {advantage: normalize_then_sum}}\n"
            "- {at: 0.7, overrides: {advantage: group}}\n",
            "the task declares none",
        ),
        ("[1, 2]\n", "a study is a mapping"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_wrong_study_files_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(Choices(preset=study_file(tmp_path, text)))
    assert expected in str(error.value), str(error.value)


def test_files_that_extend_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"extends: {path}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="extend one another"):
        planned(Choices(preset=str(path)))


def test_both_rosters() -> None:
    """Every arm once per roster, told apart by name."""
    found = planned(rosters=("matched", "published"), arms=("grpo", "dapo")).spec
    names = ["GRPO", "DAPO", "GRPO (published)", "DAPO (published)"]
    assert [a.name for a in found.arms] == names
    assert [a.roster for a in found.arms] == ["matched", "matched", "published", "published"]
    assert len({r.run_id for r in run_specs(found)}) == 8


def test_gspo_token_without_credit(tmp_path: Path) -> None:
    task = questions(tmp_path)
    with pytest.raises(UsageError, match="the task has no credit"):
        planned(task=task, arms=("gspo", "gspo_token"))
    twins = planned(task=task, arms=("gspo", "gspo_token"), run_equivalent=True).spec
    default = planned(task=task, arms=None).spec
    assert {s.name for s in default.skipped} >= {"GRPO process"}, "a preset's arms are left out, not refused"
    assert [a.name for a in twins.arms] == ["GSPO", "GSPO-token (identical to GSPO)"]
    with_credit = planned(arms=("gspo", "gspo_token", "gspo_token_process")).spec
    assert [a.name for a in with_credit.arms] == ["GSPO", "GSPO-token process"]
    assert [s.reason for s in with_credit.skipped] == ["identical to GSPO"]


def test_settings_reach_the_arms_that_have_them() -> None:
    spec = planned(arms=("grpo", "dapo", "ppo"), sets=("surrogate.high=0.28", "advantage.lam=0.95")).spec
    records = {a.name: resolve_algorithm(a.algorithm, a.overrides, spec.recipe) for a in spec.arms}
    assert {name: r.surrogate.high for name, r in records.items()} == {"GRPO": 0.28, "DAPO": 0.28, "PPO": 0.28}  # type: ignore[attr-defined]
    assert "surrogate.high" not in spec.arms[1].overrides, "DAPO has this value anyway"
    assert records["PPO"].advantage.lam == 0.95  # type: ignore[attr-defined]


def test_a_value_can_be_set_back_to_the_presets() -> None:
    """Against the roster's value, and against the recipe's."""
    matched = Recipe.model_validate(recipe("tiny"))
    [arm] = apply_changes([build_arm("grpo", "matched", several_rosters=False)], {"GRPO:surrogate.high": 0.2}, matched)
    assert resolve_algorithm(arm.algorithm, arm.overrides, matched).surrogate.high == 0.2  # type: ignore[attr-defined]
    spec = planned(arms=("dapo",), sets=("DAPO:admission.max_rounds=10",)).spec
    assert {resolve(run).admission.max_rounds for run in run_specs(spec)} == {10}  # type: ignore[attr-defined]
    assert preset("dapo").admission.max_rounds == 10  # type: ignore[attr-defined]
    assert matched.overrides["admission.max_rounds"] == 3


def test_names_are_stable_and_tell_studies_apart() -> None:
    name = planned().spec.name
    assert name == planned().spec.name
    assert name.startswith("quick-tiny-chain-")
    for changes in ({"seeds": (0,)}, {"arms": ("grpo",)}, {"budget": {"steps": 4}}, {"sets": ("recipe.lr=1e-3",)}):
        assert planned(**changes).spec.name != name
    assert planned(name="mine").spec.name == "mine"
    assert planned(name="mine").spec.hash == planned().spec.hash


def test_runs_are_arms_times_seeds_with_stable_ids() -> None:
    runs = run_specs(planned().spec)
    assert [(r.arm, r.seed) for r in runs] == [("GRPO", 0), ("GSPO", 0), ("GRPO", 1), ("GSPO", 1)]
    ids = [r.run_id for r in runs]
    assert len(set(ids)) == 4
    assert ids == [r.run_id for r in run_specs(planned(name="other").spec)]
    assert ids[0].startswith("grpo-s0-")
    assert not set(ids) & {r.run_id for r in run_specs(planned(budget={"steps": 4}).spec)}
    again = StudySpec.model_validate_json(planned().spec.model_dump_json())
    assert [r.run_id for r in run_specs(again)] == ids


def test_finite_splits_bound_the_evaluation(tmp_path: Path) -> None:
    spec = planned(task=questions(tmp_path)).spec
    assert spec.eval.final_prompts < 40
    assert spec.eval.prompts < 40
    assert planned().spec.eval.final_prompts == 8000


@pytest.mark.parametrize("name", preset_names())
def test_bundled_studies_can_be_built(name: str) -> None:
    spec = build(Choices(preset=name), recipe, held_out, lambda spec: choose_backend(spec.model, {})[0]).spec
    assert spec.preset == name
    assert len(run_specs(spec)) == len(spec.arms) * len(spec.seeds)
    assert load_preset(name)["task"] == ("guess" if name == "multi-turn" else "chain")


def test_the_study_folder(tmp_path: Path) -> None:
    spec = planned().spec
    folder = prepare_folder(spec, tmp_path)
    assert prepare_folder(spec, tmp_path) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["study.lock", "study.yaml"]
    assert [r.done for r in plan_runs(spec, folder)] == [False] * 4
    other = planned(budget={"steps": 9}, name=spec.name).spec
    with pytest.raises(UsageError, match="exists with other settings"):
        prepare_folder(other, tmp_path)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot be written"):
        prepare_folder(spec, tmp_path / "file")


def test_what_a_collapse_does_to_a_run_is_part_of_its_identity() -> None:
    stopping = run_specs(planned(sets=("monitor.on_collapse=stop",)).spec)
    plain = run_specs(planned().spec)
    assert {s.monitor.on_collapse for s in stopping} == {"stop"}
    assert {s.monitor.on_collapse for s in plain} == {"stop_on_fatal"}
    assert not {s.run_id for s in stopping} & {s.run_id for s in plain}


ENTRY = "extends: quick\narms:\n  - grpo\n  - {arm: grpo, name: noisy, %s}\n"


def test_an_arm_of_a_study_file_may_be_a_change_of_a_named_one(tmp_path: Path) -> None:
    text = ENTRY % "overrides: {logp_noise.sd: 0.1}"
    spec = planned(replace(SMALL, arms=None), preset=study_file(tmp_path, text)).spec
    plain, noisy = spec.arms
    assert (noisy.name, noisy.roster) == ("noisy", "matched")
    assert noisy.overrides == {**plain.overrides, "logp_noise.sd": 0.1}
    assert resolve(run_specs(spec)[1]).logp_noise.sd == 0.1


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("overrides: {logp_noise.size: 1}", "did you mean logp_noise.s"),
        ("overides: {}", "unknown key overides"),
        ("backend: {threads: 2}", "another machine"),
        ("backend: {dtype: int8}", "backend.engine.dtype=int8"),
        ("backend: {sampler: vllm, engine: {dtype: int8}}", "vLLM quantises a model when it loads it"),
        ("backend: {sampler: vllm, fp32_head: true, dtype: bfloat16}", "vLLM computes the logits"),
        ("backend: {fp32_head: true}", "would change nothing"),
        ("backend: {dtype: float8}", "float32"),
        ("backend: {engine: {dtyp: int8}}", "did you mean dtype"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(tmp_path: Path, own: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        planned(replace(SMALL, arms=None), preset=study_file(tmp_path, ENTRY % own))


def test_an_entry_needs_an_arm_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no arm to start from"):
        planned(replace(SMALL, arms=None), preset=study_file(tmp_path, "extends: quick\narms: [{name: x}]\n"))


def test_an_arm_with_a_backend_of_its_own_is_compared_warned_about_and_named(tmp_path: Path) -> None:
    text = ENTRY % "backend: {engine: {dtype: int8}}"
    found = planned(replace(SMALL, arms=None, controls=("base",)), preset=study_file(tmp_path, text))
    assert {a.roster for a in found.spec.arms if a.bracket != "control"} == {"stressed"}, "one group, so one ranking"
    assert any("noisy: with an engine or precision of its own" in w for w in found.warnings)
    plain, own, base = run_specs(found.spec)[:3]
    assert plain.backend == base.backend == found.spec.backend
    assert own.backend.engine.dtype == "int8"
    assert own.own_backend == {"engine.dtype": None}
    assert "backend.engine.dtype: float32 -> int8" in deviations(own, resolve(own))
    assert own.hash != plain.hash
    again = StudySpec.model_validate_json(found.spec.model_dump_json())
    assert [r.run_id for r in run_specs(again)] == [r.run_id for r in run_specs(found.spec)]
    by_hand = planned(sets=("GSPO:backend.engine.dtype=int8",)).spec
    assert [a.backend for a in by_hand.arms] == [{}, {"engine.dtype": "int8"}]
    assert {a.roster for a in by_hand.arms} == {"stressed"}


def test_precision_and_noise_of_a_whole_study() -> None:
    sets = ("backend.engine.dtype=float16", "logp_noise.bias=0.01")
    spec = build(replace(SMALL, sets=sets), recipe, held_out, lambda spec: spec.backend).spec
    assert {r.backend.rollout_dtype for r in run_specs(spec)} == {"float16"}
    assert {resolve(r).logp_noise.bias for r in run_specs(spec)} == {0.01}
    assert all(a.roster == "matched" for a in spec.arms), "the same for all, so nobody has anything of its own"


def test_a_zero_mismatch_control_samples_with_the_weights_it_trains() -> None:
    spec = planned(controls=("zero_mismatch",)).spec
    on_vllm = spec.model_copy(update={"backend": BackendSpec(sampler="vllm", dtype="bfloat16")})
    run = next(r for r in run_specs(on_vllm) if r.bracket == "control")
    assert (run.backend.sampler, run.backend.rollout_dtype) == ("transformers", "bfloat16")
    assert resolve(run).old_logp == "rollout"
    assert "backend.sampler: vllm -> transformers" in deviations(run, resolve(run))


LATER = ("fp32_head", "experts", "routers")


def test_fields_that_came_later_do_not_move_hashes() -> None:
    """Studies and runs from before must go on."""
    spec = planned().spec
    old = spec.model_dump(mode="json", exclude={"name", "checkpoints"})
    for key in LATER:
        del old["backend"][key]
    for arm in old["arms"]:
        del arm["backend"]
    for key in ("transfer", "folder"):
        del old["backend"]["engine"][key]
    assert spec.hash == stable_hash(old)
    run = run_specs(spec)[0]
    data = run.model_dump(mode="json", exclude={"checkpoints", "own_backend"})
    for key in LATER:
        del data["backend"][key]
    for key in ("transfer", "folder"):
        del data["backend"]["engine"][key]
    assert run.hash == stable_hash(data)


def test_replay_of_the_samplers_routes_is_checked_against_the_engine_of_each_arm(tmp_path: Path) -> None:
    text = "extends: quick\nmodel: tiny-moe\narms: [{arm: grpo_replay_r3, name: x, backend: {sampler: vllm}}]\n"
    with pytest.raises(UsageError, match=r"routing_replay=r3 with vLLM on cpu"):
        build(
            Choices(preset=study_file(tmp_path, text)), recipe, held_out,
            lambda spec: BackendSpec(threads=1, routers=2),
        )  # fmt: skip
