"""The embedded model: vocabulary, initialisation and the five shipped cold starts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models.coldstart import FOLDER, make_batch, measure, style_of
from harness.models.load import LoadedModel, load, verified_coldstart
from harness.models.tiny import EOS, EOS_ID, PAD, PAD_ID, VOCABULARY, tiny_model, tiny_tokenizer
from harness.models.weights import file_sha256, unique_tensors, weights_sha256
from tasks.chain import STYLES, build, cold_start_answer


def tiny(seed: int = 0, **params: object) -> LoadedModel:
    return load(ModelSpec(name="tiny", params=dict(params)), seed=seed, device="cpu", dtype="float32")


def test_vocabulary_round_trip() -> None:
    tokenizer, task = tiny_tokenizer(), build()
    assert len(tokenizer) == len(VOCABULARY) == 25
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, EOS)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for style in STYLES:
        text = cold_start_answer(task.item("train", 0), style)
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split())
        assert tokenizer.decode([*ids, EOS_ID, PAD_ID], skip_special_tokens=True) == text


def test_initialisation_scales_with_fan_in_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    model = tiny_model(3)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(1 / math.sqrt(weight.shape[1]), rel=0.1), name
    assert weights_sha256(unique_tensors(model)) == weights_sha256(unique_tensors(tiny_model(3)))
    assert weights_sha256(unique_tensors(model)) != weights_sha256(unique_tensors(tiny_model(4)))


def test_a_loaded_tiny_says_what_it_is() -> None:
    model = tiny(seed=7)
    assert model.parameters == 100_288
    assert model.eos_ids == (EOS_ID,)
    assert model.pad_id == PAD_ID
    assert model.context == 2048
    assert not model.policy.training
    assert model.sha256 == tiny(seed=2).sha256 == tiny(seed=0, coldstart=2).sha256
    assert len({tiny(seed=i).sha256 for i in range(5)}) == 5


def test_the_record_of_the_cold_starts_is_true() -> None:
    record = json.loads((FOLDER / "coldstarts.json").read_text())["coldstarts"]
    record = {name: facts for name, facts in record.items() if not name.startswith("tiny-moe")}
    assert sorted(record) == [*(f"tiny-{i}" for i in range(5)), "tiny-turns-0"]
    for name, facts in record.items():
        path = FOLDER / f"{name}.safetensors"
        assert (file_sha256(path), path.stat().st_size) == (facts["sha256"], facts["bytes"])
    assert all(0.2 <= won <= 0.5 for won in record.pop("tiny-turns-0")["pass@1"].values())
    for facts in record.values():
        assert 0.30 <= facts["pass@1"] <= 0.40
        assert facts["prompts"] >= 256
        assert facts["samples"] == 4


@pytest.mark.parametrize("number", range(5))
def test_pass_at_1_of_a_cold_start(number: int) -> None:
    model = tiny(seed=number)
    found = measure(
        model.policy, model.tokenizer, build(), split="test", first=0, num_prompts=256, samples=2, seed=number
    )
    assert 0.25 <= found["pass@1"] <= 0.45
    assert found["styles"]["verbose"] > 0.4  # verbose first, so that shortening is possible
    assert min(found["styles"].values()) > 0.05


def test_a_changed_or_missing_cold_start_is_refused(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        shutil.copy(path, tmp_path)
    assert verified_coldstart("tiny", 1, tmp_path).exists()
    content = bytearray((tmp_path / "tiny-1.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tiny-1.safetensors").write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"changed or cut(?s:.*)harness\.models\.coldstart"):
        verified_coldstart("tiny", 1, tmp_path)
    (tmp_path / "tiny-2.safetensors").unlink()
    with pytest.raises(UsageError, match="missing"):
        verified_coldstart("tiny", 2, tmp_path)


def test_supervised_batches_train_on_answers_with_their_end() -> None:
    tokenizer, task = tiny_tokenizer(), build()
    ids, mask = make_batch(task, tokenizer, 0, torch.Generator().manual_seed(0))
    for row, (tokens, answer) in enumerate(zip(ids, mask, strict=True)):
        text = tokenizer.decode(tokens[answer].tolist())
        assert text.endswith(f"# {task.item('train', row).answer} {EOS}")
        style = style_of(text)
        assert text == f"{cold_start_answer(task.item('train', row), style)} {EOS}"  # type: ignore[arg-type]
        assert (tokens[: int(answer.nonzero()[0])] != PAD_ID).all()


@pytest.mark.parametrize("params", [{"coldstart": 5}, {"coldstart": "a"}, {"size": 3}])
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        tiny(**params)
