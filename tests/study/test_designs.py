"""Designs -> cells: the right cells, the right algorithms, and a refusal where a design could answer nothing."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from harness.commands.ablate import stress_factor
from harness.core.ablation import WITH, Design, Factor, Level
from harness.core.algorithm import Algorithm, difference
from harness.core.errors import UsageError
from harness.core.resolve import resolve_algorithm
from harness.core.spec import BackendSpec, Recipe, Roster
from harness.models.recipes import held_out, recipe
from harness.study.ablate import _identity
from harness.study.arms import build_arm
from harness.study.build import Choices, Planned, build, run_specs
from harness.study.designs import build_cells, factors_between, parse_design, settings
from harness.study.presets import preset_names

TINY = Recipe.model_validate(recipe("tiny"))
SMALL = Choices(preset="dapo", kind="ablations", seeds=(0, 1), budget={"steps": 3})


def planned(**changes: Any) -> Planned:
    return build(replace(SMALL, **changes), recipe, held_out, lambda spec: BackendSpec(threads=1))


def design(kind: str, num: int = 4) -> Design:
    levels = (Level(name="without"), Level(name="with"))
    factors = tuple(Factor(name=f"f{i}", levels=levels) for i in range(num))
    return Design(kind=kind, algorithm="dapo", factors=factors)  # type: ignore[arg-type]


@pytest.mark.parametrize("num", [3, 4, 5])
def test_designs_are_parts_of_the_cube(num: int) -> None:
    def inside(kind: str) -> list[frozenset[str]]:
        return [frozenset(f for f, level in cell.items() if level == WITH) for cell in settings(design(kind, num))]

    cube, full = inside("factorial"), frozenset(f"f{i}" for i in range(num))
    assert len(set(cube)) == len(cube) == 2**num
    half = inside("fraction")
    assert len(half) == 2 ** (num - 1)
    assert set(half) < set(cube)
    assert full in half
    for i in range(num):  # balanced: every factor is in as often as out, and so is every pair
        assert sum(f"f{i}" in c for c in half) == 2 ** (num - 2)
    assert inside("leave_one_out") == [full, *(full - {f"f{i}"} for i in range(num))]
    assert inside("add_one_in") == [frozenset(), *(frozenset({f"f{i}"}) for i in range(num))]
    assert inside("path") == [frozenset(f"f{i}" for i in range(done)) for done in range(num + 1)]


def test_the_dapo_cube_reaches_from_grpo_without_kl_to_dapo() -> None:
    spec, ablation = planned().spec, planned().ablation
    assert ablation is not None
    assert len(spec.arms) == len(ablation.cells) == 16
    records = {a.name: resolve_algorithm(a.algorithm, a.overrides, spec.recipe) for a in spec.arms}
    everything = "clip_higher + dynamic_sampling + token_loss + overlong"
    assert records[everything] == resolve_algorithm("dapo", {}, spec.recipe)
    grpo = resolve_algorithm("grpo", {"penalties.kl": None}, spec.recipe)
    assert difference(grpo, records["core"]) == {}
    assert spec.reference_arm == "core"
    assert len(run_specs(spec)) == 32


@pytest.mark.parametrize("name", [n for n in preset_names("ablations") if n != "default"])
def test_bundled_ablations_can_be_built(name: str) -> None:
    found = planned(preset=name)
    assert found.ablation is not None
    kind, factors = found.ablation.design.kind, (*found.ablation.design.factors, *found.ablation.design.stress)
    if kind == "factorial":
        assert len(found.ablation.cells) == prod(len(f.levels) for f in factors)
    assert len(found.spec.arms) == len(found.ablation.cells) + len(found.ablation.extra)
    assert len({r.run_id for r in run_specs(found.spec)}) == 2 * len(found.spec.arms)


@pytest.mark.parametrize(("a", "b"), [("grpo", "dapo"), ("grpo", "gspo"), ("grpo", "gfpo"), ("dapo", "dr_grpo")])
def test_a_path_leads_from_one_algorithm_to_the_other(a: str, b: str) -> None:
    rosters: tuple[Roster, ...] = ("matched", "published")
    for roster in rosters:
        found = Design(kind="path", algorithm=b, factors=factors_between(a, b, roster, TINY))
        arms, ablation = build_cells(found, roster, TINY)
        ends = [resolve_algorithm(x.algorithm, x.overrides, TINY) for x in (arms[0], arms[-1])]
        for name, record in zip((a, b), ends, strict=True):
            assert difference(_arm_record(name, roster), record) == {}, name
        assert len(ablation.cells) == len(found.factors) + 1


def test_a_path_over_an_impossible_algorithm_is_refused() -> None:
    """PPO's KL stands in the reward, which a group advantage would not read."""
    found = Design(kind="path", algorithm="gspo", factors=factors_between("ppo", "gspo", "published", TINY))
    with pytest.raises(UsageError, match="would not be read"):
        build_cells(found, "published", TINY)


def _arm_record(name: str, roster: Roster) -> Algorithm:
    arm = build_arm(name, roster, several_rosters=False)
    return resolve_algorithm(arm.algorithm, arm.overrides, TINY)


def test_stress_crosses_every_cell_and_changes_the_recipe_of_no_other() -> None:
    stress = {"lr": {"x1": {}, "x3": {"recipe.lr": 9e-4}}, "updates": {"4": {}, "8": {"updates.mini_batches": 8}}}
    found = planned(design={"kind": "leave_one_out", "stress": stress})
    assert len(found.spec.arms) == 5 * 4
    assert {a.roster for a in found.spec.arms} == {"stressed"}
    runs = {r.arm: r for r in run_specs(found.spec)}
    [hot] = [n for n, c in (found.ablation.cells if found.ablation else {}).items()
             if c["lr"] == "x3" and c["updates"] == "4" and set(c.values()) == {"with", "x3", "4"}]  # fmt: skip
    assert runs[hot].recipe.lr == 9e-4
    assert sum(r.recipe.lr == found.spec.recipe.lr for r in runs.values()) == 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"preset": "dapoo"}, "did you mean dapo"),
        ({"design": {"kind": "latin"}}, "fraction, leave_one_out"),
        ({"design": {"factors": {}}}, "nothing would be varied"),
        ({"design": {"factors": {"a": {"x": {}}}}}, "nothing to contrast"),
        ({"design": {"factors": [1]}}, "maps factors to levels"),
        ({"design": {"factors": {"a": {"x": {"surrogate.hihg": 0.1}, "y": {}}}}}, "did you mean surrogate.high"),
        ({"design": {"factors": {"a": {"x": {"surrogate.high": -1}, "y": {}}}}}, "greater than or equal to 0"),
        ({"design": {"factors": {"a": {"x": {"surrogate.high": 0.28}, "y": {}}}}}, "same algorithm"),
        ({"design": {"factors": {"a": {"x": {"recipe.lr": 1e-4}, "y": {}}}}}, "under `stress`"),
        ({"design": {"stress": {"lr": {"a": {}, "b": {"recipe.lrr": 1}}}}}, "did you mean lr"),
        ({"design": {"kind": "fraction", "factors": {"a": {"x": {"siblings": 4}, "y": {}}}}}, "confound"),
        ({"design": {"between": ["grpo"]}}, "from one algorithm to another"),
        ({"design": {"between": ["grpo", "grpoo"]}}, "did you mean grpo"),
        ({"design": {"between": ["gspo", "gspo"]}}, "do not differ"),
        ({"design": {"factros": {}}}, "did you mean factors"),
        ({"design": {"algorithm": "dpo"}}, "did you mean"),
        ({"rosters": ("matched", "published")}, "have one"),
        ({"preset": "gspo", "design": {"kind": "path"}}, "two levels"),
        ({"sets": ("surrogate.high=0.2",)}, "same algorithm"),
        ({"kind": "studies"}, "there is no such preset"),
        (
            {"design": {"factors": {"a": {"x": {"siblings": 4}, "y": {}}, "b": {"x": {"siblings": 6}, "y": {}}}}},
            "could not be told apart",
        ),
    ],
)
def test_designs_that_cannot_answer_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        planned(**changes)
    assert expected in str(error.value), str(error.value)
    assert error.value.instead


def test_schedules_are_factors_of_their_own() -> None:
    """Query refresh x growing responses: each cell has the entries of its levels, in the order of their times."""
    refresh = {"off": {}, "on": {"schedule": [{"at": 0.5, "overrides": {"recipe.pool": 1}}]}}
    length = {"short": {}, "growing": {"schedule": [{"at": 0.25, "overrides": {"recipe.max_new_tokens": 70}}]}}
    data = {
        "kind": "factorial", "algorithm": "grpo",
        "factors": {"clip": {"narrow": {}, "wide": {"surrogate.high": 0.4}}},
        "stress": {"refresh": {k: {**v, "recipe.pool_size": 64} for k, v in refresh.items()}, "length": length},
    }  # fmt: skip
    design = parse_design(data, "matched", Recipe())
    arms, ablation = build_cells(design, "matched", Recipe())
    assert len(arms) == 8
    for arm in arms:
        cell = ablation.cells[arm.name]
        expected = [0.25] * (cell["length"] == "growing") + [0.5] * (cell["refresh"] == "on")
        assert [entry.at for entry in arm.schedule] == expected
        assert arm.roster == "stressed"
    both = {**data, "stress": {"refresh": refresh, "again": {"no": {}, "yes": refresh["on"]}}}
    with pytest.raises(UsageError, match=r"schedule of recipe\.pool"):
        build_cells(parse_design(both, "matched", Recipe()), "matched", Recipe())
    inside = {**data, "factors": {"refresh": refresh}, "stress": {}}
    with pytest.raises(UsageError, match="has a schedule"):
        build_cells(parse_design(inside, "matched", Recipe()), "matched", Recipe())


def test_a_stress_may_change_how_it_is_computed() -> None:
    stress = {"rollout": {"float32": {}, "int8": {"backend.engine.dtype": "int8"}}}
    spec = planned(preset="gspo", design={"stress": stress}).spec
    assert {a.roster for a in spec.arms} == {"stressed"}
    assert {tuple(a.backend.items()) for a in spec.arms} == {(), (("engine.dtype", "int8"),)}
    runs = run_specs(spec)
    assert sum(r.backend.engine.dtype == "int8" for r in runs) == len(runs) // 2
    with pytest.raises(UsageError, match="put it under `stress`"):
        planned(preset="gspo", design={"factors": stress})


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("backend.engine.dtype=float32,int8", {"float32": "float32", "int8": "int8"}),
        ("logp_noise.sd=0,0.1", {"0": 0, "0.1": 0.1}),
        ("old_logp=train,rollout", {"train": "train", "rollout": "rollout"}),
    ],
)
def test_a_stress_of_the_command_line_may_be_any_path(text: str, levels: dict[str, Any]) -> None:
    name, found = stress_factor(text, None)  # type: ignore[arg-type]
    assert found == {level: {name: value} for level, value in levels.items()}
    assert len(planned(preset="gspo", design={"stress": {name: found}}).spec.arms) % 2 == 0


def test_an_ablation_from_before_keeps_its_identity() -> None:
    record = planned().ablation
    assert record is not None
    levels = [x for f in _identity(record)["design"]["factors"] for x in f["levels"]]
    assert levels
    assert not [x for x in levels if "backend" in x]
