"""The embedded mixtures of experts: initialisation, depths and shipped cold starts."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models.coldstart import FOLDER, lessons, measure, rounded
from harness.models.coldstart_moe import loads
from harness.models.load import NUM_COLDSTARTS, LoadedModel, bundled_models, load, parameters_of, pinned
from harness.models.routers import Routers
from harness.models.tiny_moe import COLDSTARTS, EXPERTS, MIXTURES, coldstart_family, tiny_moe_model
from harness.models.weights import file_sha256, unique_tensors, weights_sha256
from harness.study.measure import EMBEDDED, EMBEDDED_EXPERTS, choose_backend
from harness.study.measure import MIXTURES as KNOWN_MIXTURES
from tasks.chain import build

PARAMETERS = {"tiny-moe": 111_264, "tiny-moe-32": 112_800}  # of a layer; embedding and last norm have 1,664
RECORD = json.loads((FOLDER / "coldstarts.json").read_text())["coldstarts"]
STARTS = [(name, layers, n) for name, shipped in COLDSTARTS.items() for layers, m in shipped.items() for n in range(m)]


def mixture(name: str, seed: int = 0, dtype: str = "float32", **params: object) -> LoadedModel:
    return load(ModelSpec(name=name, params=dict(params)), seed=seed, device="cpu", dtype=dtype)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_matrix_starts_with_its_fan_in(name: str) -> None:
    before = torch.random.get_rng_state()
    model = tiny_moe_model(name, 2, 3)
    assert torch.equal(before, torch.random.get_rng_state())
    shapes = set()
    for label, weight in model.named_parameters():
        if weight.dim() > 1:
            shapes.add(weight.dim())
            each = weight.flatten(0, -3) if weight.dim() == 3 else weight[None]
            for matrix in each:  # every expert for itself
                assert matrix.std().item() == pytest.approx(1 / math.sqrt(matrix.shape[1]), rel=0.15), label
    assert shapes == {2, 3}
    assert weights_sha256(unique_tensors(model)) == weights_sha256(unique_tensors(tiny_moe_model(name, 2, 3)))


@pytest.mark.parametrize(("name", "layers"), [(name, layers) for name in MIXTURES for layers in COLDSTARTS[name]])
def test_a_loaded_mixture_says_what_it_is(name: str, layers: int) -> None:
    model = mixture(name, **({} if layers == 2 else {"layers": layers}))
    routers, facts = Routers(model.policy), choose_backend(ModelSpec(name=name, params={"layers": layers}), {})[1]
    assert facts["moe"] == {"layers": layers, "experts": routers.num_experts, "top_k": routers.top_k}
    assert (routers.num_layers, routers.num_experts) == (layers, MIXTURES[name].experts)
    assert routers.top_k == MIXTURES[name].top_k
    assert model.policy.config._experts_implementation == EXPERTS
    assert model.parameters == layers * PARAMETERS[name] + 1_664
    assert not model.policy.training


def test_a_seed_picks_its_cold_start() -> None:
    spec = ModelSpec(name="tiny-moe")
    assert mixture("tiny-moe", 4).sha256 == mixture("tiny-moe", 1).sha256 == mixture("tiny-moe", 0, coldstart=1).sha256
    assert len({mixture("tiny-moe", i).sha256 for i in range(3)}) == 3
    assert pinned(spec, 4).params == {"coldstart": 1}
    deep = ModelSpec(name="tiny-moe", params={"layers": 8})
    assert pinned(deep, 4).params == {"layers": 8, "coldstart": 0}


@pytest.mark.parametrize(
    ("params", "match"),
    [({"layers": 3}, "2, 4, 8"), ({"layers": [2]}, "2, 4, 8"), ({"layers": 4, "coldstart": 1}, "0 to 0"),
     ({"experts": 4}, "no such parameter")],
)  # fmt: skip
def test_bad_parameters_are_refused(params: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        mixture("tiny-moe", **params)
    with pytest.raises(UsageError, match="no such parameter"):
        mixture("tiny", layers=2)


def test_what_is_embedded_is_known_everywhere() -> None:
    assert set(NUM_COLDSTARTS) == set(EMBEDDED)
    assert set(EMBEDDED) <= set(bundled_models())
    assert {name: {"experts": m.experts, "top_k": m.top_k} for name, m in MIXTURES.items()} == KNOWN_MIXTURES
    assert EMBEDDED_EXPERTS == EXPERTS
    assert parameters_of("tiny-moe") == "layers 2 (coldstart 0..2), 4 (coldstart 0), 8 (coldstart 0)"
    assert (parameters_of("tiny"), parameters_of("smollm2-135m")) == ("coldstart 0..4", "")
    assert set(lessons()) == set(RECORD)


def test_the_record_of_the_cold_starts_is_true() -> None:
    shipped = {f"{coldstart_family(name, layers)}-{n}": (name, layers) for name, layers, n in STARTS}
    assert {name for name in RECORD if name.startswith("tiny-moe")} == set(shipped)
    for label, (name, layers) in shipped.items():
        facts, path = RECORD[label], FOLDER / f"{label}.safetensors"
        assert (file_sha256(path), path.stat().st_size) == (facts["sha256"], facts["bytes"])
        assert {w.dtype for w in load_file(path).values()} == {torch.bfloat16}
        assert 0.30 <= facts["pass@1"] <= 0.40
        assert (facts["prompts"], facts["samples"]) == (1024, 4)
        assert len(facts["load"]) == layers
        assert all(0 < low <= 1 <= high < MIXTURES[name].experts / MIXTURES[name].top_k for low, high in facts["load"])


@pytest.mark.parametrize(("name", "layers", "number"), STARTS)
def test_pass_at_1_of_a_cold_start(name: str, layers: int, number: int) -> None:
    model = mixture(name, layers=layers, coldstart=number)
    found = measure(
        model.policy, model.tokenizer, build(), split="test", first=0, num_prompts=192, samples=2, seed=number
    )
    assert 0.24 <= found["pass@1"] <= 0.46  # sd of a score over 384 responses: .025
    assert found["styles"]["verbose"] > 0.4
    assert min(found["styles"].values()) > 0.05


def test_weights_compute_in_the_dtype_that_is_asked_for_and_were_measured_rounded() -> None:
    model = mixture("tiny-moe")
    assert {w.dtype for w in model.policy.parameters()} == {torch.float32}
    again = rounded(model.policy, torch.bfloat16)
    assert weights_sha256(unique_tensors(again)) == model.sha256
    assert {w.dtype for w in mixture("tiny-moe", dtype="bfloat16").policy.parameters()} == {torch.bfloat16}
    fresh = tiny_moe_model("tiny-moe", 2)
    assert weights_sha256(unique_tensors(rounded(fresh, torch.bfloat16))) != weights_sha256(unique_tensors(fresh))
    assert torch.equal(rounded(fresh, torch.bfloat16).model.rotary_emb.inv_freq, fresh.model.rotary_emb.inv_freq)


def test_loads_of_the_experts() -> None:
    model = mixture("tiny-moe").policy
    for found, recorded in zip(loads(model), RECORD["tiny-moe-l2-0"]["load"], strict=True):
        assert list(found) == pytest.approx(recorded, abs=0.01)
    with torch.no_grad():
        gate = model.get_submodule("model.layers.0.mlp.gate")
        gate.weight.zero_()  # type: ignore[union-attr,operator]  # all logits alike: the same two experts for every token
    assert loads(model)[0] == (0.0, 4.0)
