"""A training process needs torch, transformers and pydantic; a report needs no torch. Tried in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.rules import room_of
from tests.architecture.source import ROOT, modules

# As if they were not installed: `import x` raises ModuleNotFoundError, `find_spec("x")` finds nothing.
BLOCK = """
import sys
from importlib.machinery import PathFinder
hidden, find = {names!r}, PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if name in hidden else find(name, path, target)
"""
NOT_FOR_TRAINING = (
    "mlflow", "optuna", "pandas", "rich", "jaxtyping", "beartype", "ray", "vllm", "statsmodels", "matplotlib", "typer",
    "peft", "gguf", "fastdigest", "lm_eval", "datasets", "trl", "reasoning_gym",
)  # fmt: skip
NOT_AT_IMPORT = ("scipy", "jinja2")  # transformers itself may load these once a model generates or a chat is rendered
NOT_FOR_READING = ("torch", "transformers", "mlflow", "optuna", "jaxtyping")

ONE_STEP = """
from pathlib import Path
from harness import NUMERICS_VERSION
from harness.core.results import SPEC, STEPS, read_lines, to_json
from harness.core.spec import RunSpec
from harness.run import execute

spec = RunSpec.model_validate({
    "numerics_version": NUMERICS_VERSION, "arm": "GRPO", "algorithm": "grpo", "seed": 0,
    "task": {"name": "chain"}, "model": {"name": "tiny"}, "recipe": {"prompts_per_step": 4, "max_new_tokens": 35},
    "budget": {"steps": 1}, "eval": {"points": 0, "prompts": 4, "final_prompts": 4},
})
folder = Path(sys.argv[1]) / spec.run_id
folder.mkdir()
(folder / SPEC).write_text(to_json(spec))
result = execute(spec, folder)
assert result is not None and result.status != "infra_failed", result
rows = list(read_lines(folder / STEPS))
assert [row["step"] for row in rows] == [1], rows
"""


def _python(code: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def _import_all(rooms: tuple[str, ...]) -> str:
    names = [name for name in modules() if room_of(name) in rooms and not name.endswith("__main__")]
    assert names
    return (
        f"import importlib, json\nfor name in json.loads({json.dumps(names)!r}):\n    importlib.import_module(name)\n"
    )


def test_the_training_path_imports_little() -> None:
    _python(BLOCK.format(names=NOT_FOR_TRAINING + NOT_AT_IMPORT) + _import_all(("rollout", "train", "run")))


def test_one_step_is_trained_without_the_rest(tmp_path: Path) -> None:
    _python(BLOCK.format(names=NOT_FOR_TRAINING) + ONE_STEP, str(tmp_path))


def test_results_and_reports_need_no_torch() -> None:
    readers = "import harness.core.results, harness.core.spec, harness.core.metrics, harness.core.errors\n"
    _python(BLOCK.format(names=NOT_FOR_READING) + readers + _import_all(("stats", "report")))
