"""`harness eval` on a real run: trained for a step, exported, scored by lm-eval's own model next to its base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.commands.eval import EvalOptions, run_eval
from harness.core.benchmarks import read_benchmarks
from harness.core.errors import UsageError
from harness.core.registry import build_task
from harness.core.results import read_run
from harness.core.spec import ModelSpec, TemplateSpec
from harness.evaluate.lm_eval import Generation
from harness.models.preflight import tokenizer_of
from harness.models.smollm2 import PACKAGE
from harness.run import execute
from tests.fakes.small_runs import make_folder, run_spec

pytestmark = pytest.mark.system("python:lm_eval", "python:datasets", "python:math_verify", f"python:{PACKAGE}")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights beside its embedding, with the tokenizer and template of SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "small"
    tokenizer = tokenizer_of(ModelSpec(name="smollm2-135m"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "gsm8k_test.jsonl"
    rows = [{"question": f"{i} plus 1?", "answer": f"add\n#### {i + 1}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(subject: Path, data: Path, results: Path, **changes: Any) -> EvalOptions:
    how = Generation(
        engine="hf", dtype="float32", device="cpu", temperature=1.0, max_new_tokens=4, limit=3, seed=0
    )  # fmt: skip
    given: dict[str, Any] = {
        "subject": str(subject), "benchmarks": "gsm8k", "data": data, "checkpoint": "last", "samples": 2, "how": how,
        "template": None, "task_params": (), "results": results, "mlflow": False, "as_json": True,
    } | changes  # fmt: skip
    return EvalOptions(**given)


def test_a_run_is_scored_next_to_its_base_model(
    small_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "odd.py"
    reward.write_text("def score(prompt, response, answer):\n    return float(len(response) % 2)\n")
    params = {"preset": "gsm8k", "reward_function": f"{reward}:score"}  # a random model never solves anything
    sha256 = build_task(str(data), params).info.data_sha256
    task = {"name": str(data), "params": params, "template": {"system": "Be brief."}, "data_sha256": sha256}
    spec = run_spec(
        steps=1, task=task, model={"name": str(small_model)},
        recipe={"prompts_per_step": 2, "max_new_tokens": 8, "lr": 0.1}, eval={"points": 0, "final_prompts": 2},
    )  # fmt: skip
    folder = make_folder(spec, tmp_path / "demo" / "runs")
    assert execute(spec, folder) is not None
    assert read_run(folder).result is not None
    capsys.readouterr()
    assert run_eval(options(folder, data.parent, tmp_path)) == 0
    base, run = read_benchmarks(folder)
    assert (base.role, base.step, run.role, run.step, run.checkpoint) == ("base", 0, "run", 1, "last")
    assert base.template_sha256 == run.template_sha256
    assert base.data_sha256 == run.data_sha256
    assert [len(row.questions) for row in (base, run)] == [3, 3]
    assert all(row.avg_at_k.value == row.lm_eval for row in (base, run))
    printed = json.loads(capsys.readouterr().out)
    place = Path(printed["folder"])
    responses = {}
    for row in (base, run):
        lines = [json.loads(line) for line in (place / row.outputs).read_text().splitlines()][1:]
        assert all("Be brief." in line["prompt"] for line in lines)
        assert row.lm_eval == sum(sum(line["correct"]) for line in lines) / 6
        responses[row.role] = [line["responses"] for line in lines]
    assert responses["base"] != responses["run"], "the exported weights are those of the base model"
    assert not (place / "model").exists()


def test_a_run_keeps_its_template(small_model: Path, data: Path, tmp_path: Path) -> None:
    spec = run_spec(task={"name": str(data), "params": {"preset": "gsm8k"}}, model={"name": str(small_model)})
    folder = make_folder(spec, tmp_path)
    with pytest.raises(UsageError, match="with the template of its training"):
        run_eval(options(folder, data.parent, tmp_path, template=TemplateSpec(system="Be brief.")))
    with pytest.raises(UsageError, match="checkpoint last"):
        run_eval(options(folder, data.parent, tmp_path))
