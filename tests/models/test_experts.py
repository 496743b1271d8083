"""Backends of a mixture's experts: they agree, the quickest is chosen and recorded, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import UsageError
from harness.core.shapes import Tensor
from harness.core.spec import BackendSpec, ModelSpec
from harness.models import experts, measure
from harness.models.experts import BACKENDS, set_experts, timed_backends
from harness.models.load import load
from harness.models.response_logits import token_logps
from harness.models.tiny import tiny_model
from harness.study import measure as choices
from tests.fakes.small_moes import MOES, folder
from tests.fakes.small_runs import run_spec


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moes")


def loaded(models: Path, family: str) -> Any:
    return load(ModelSpec(name=str(folder(family, models))), seed=0, device="cpu", dtype="float32").policy


def scored(policy: Any, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs of random responses and the gradient of their sum."""
    set_experts(policy, name)
    ids = torch.randint(0, 25, (6, 17), generator=torch.Generator().manual_seed(1))
    select = torch.zeros_like(ids, dtype=torch.bool)
    select[:, 5:-1] = True
    logp, _ = token_logps(policy, ids, select, temperature=1.0)
    policy.zero_grad(set_to_none=True)
    logp.sum().backward()
    return logp.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", MOES)
def test_backends_agree_forward_and_backward(models: Path, family: str) -> None:
    policy = loaded(models, family)
    logp, gradient = scored(policy, "eager")
    assert any(".experts." in name for name in gradient)
    assert any(name.endswith("gate.weight") for name in gradient)
    for name in BACKENDS[1:]:
        other_logp, other = scored(policy, name)
        assert policy.config._experts_implementation == name
        torch.testing.assert_close(other_logp, logp, rtol=0, atol=1e-5)
        assert other.keys() == gradient.keys()
        for label, expected in gradient.items():
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(other[label], expected, rtol=0, atol=1e-5 * scale, msg=label)


def test_what_cannot_be_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, policy = tiny_model(), loaded(models, "olmoe")
    set_experts(dense, None)
    with pytest.raises(UsageError, match="dense"):
        set_experts(dense, "eager")
    with pytest.raises(UsageError, match=r"quick(?s:.*)eager, grouped_mm, batched_mm"):
        set_experts(policy, "quick")
    monkeypatch.setattr(type(policy), "_can_set_experts_implementation", classmethod(lambda _: False))
    with pytest.raises(UsageError, match="one way"):
        set_experts(policy, "eager")
    assert timed_backends(policy, lambda: None, 1) == {}
    assert timed_backends(dense, lambda: None, 1) == {}


def test_the_quickest_backend_is_left_and_copies_are_bounded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded(models, "mixtral")
    seconds = {"eager": 3.0, "grouped_mm": 1.0, "batched_mm": 2.0}
    monkeypatch.setattr(
        experts, "best_seconds", lambda work, device: seconds[policy.config._experts_implementation or ""]
    )
    found = timed_backends(policy, lambda: None, 10)
    assert set(found) == set(BACKENDS)
    assert found["eager"] == {"update": 0.3, "step": 0.3 + 3.0 / (experts.LINES * experts.NEW)}
    assert policy.config._experts_implementation == "grouped_mm"
    # per token: 2 layers x 2 chosen experts x (96 x 32 + 32 x 48) weights of 4 bytes
    monkeypatch.setattr(experts, "MAX_COPIES", 10 * 2 * 2 * (96 * 32 + 32 * 48) * 4)
    assert "batched_mm" in timed_backends(policy, lambda: None, 10)
    assert "batched_mm" not in timed_backends(policy, lambda: None, 11)


def test_a_backend_that_does_not_run_here_is_left_out(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = loaded(models, "mixtral")

    def update() -> None:
        if policy.config._experts_implementation == "grouped_mm":
            raise RuntimeError("no such kernel")

    assert set(timed_backends(policy, update, 1)) == {"eager", "batched_mm"}


def test_a_model_is_tried_and_its_backend_recorded(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec(name=str(folder("qwen3_moe", models)))
    monkeypatch.setattr("sys.argv", ["measure", spec.model_dump_json()])
    assert measure.main() == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["moe"] == {"layers": 4, "experts": 64, "top_k": 8}
    assert facts["experts"].keys() == {"float32", "bfloat16"}
    assert {"eager", "grouped_mm"} <= facts["experts"]["float32"].keys()
    monkeypatch.setattr(choices, "measured", lambda model: facts)
    chosen, _ = choices.choose_backend(spec, {"dtype": "float32"})
    assert chosen.experts == min(facts["experts"]["float32"], key=lambda n: facts["experts"]["float32"][n]["step"])


def test_dtype_sampler_and_user_decide_on_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is decoded by the experts only where no engine does it."""
    facts = {
        "seconds": {"float32": 1.0, "bfloat16": 2.0}, "can_share": True, "attention": "sdpa", "num_gpus": 0,
        "moe": {"layers": 4, "experts": 64, "top_k": 8},
        "experts": {
            "float32": {"eager": {"update": 1.0, "step": 4.0}, "grouped_mm": {"update": 2.0, "step": 3.0}},
            "bfloat16": {"eager": {"update": 1.0, "step": 2.0}},
        },
    }  # fmt: skip
    monkeypatch.setattr(choices, "measured", lambda model: facts)
    model = ModelSpec(name="some/moe")
    for given, expected in (
        ({}, "grouped_mm"), ({"dtype": "bfloat16"}, "eager"), ({"sampler": "vllm"}, "eager"),
        ({"experts": "batched_mm"}, "batched_mm"),
    ):  # fmt: skip
        assert choices.choose_backend(model, given)[0].experts == expected
    facts["experts"] = {"float32": {}, "bfloat16": {}}
    assert choices.choose_backend(model, {})[0].experts is None
    assert choices.choose_backend(ModelSpec(name="tiny"), {}) == (BackendSpec(), {})
    assert choices.choose_backend(ModelSpec(name="tiny-moe-32"), {})[0].experts == "grouped_mm"
    assert choices.choose_backend(ModelSpec(name="tiny-moe"), {"experts": "eager"})[0].experts == "eager"


def test_a_dense_runs_hash_does_not_know_of_experts() -> None:
    assert run_spec().hash == run_spec(backend={"experts": None}).hash
    assert run_spec().run_id == "grpo-s0-b081732a"  # as before there was such a field
    assert len({run_spec(backend={"experts": name}).hash for name in (None, "eager", "grouped_mm")}) == 3
