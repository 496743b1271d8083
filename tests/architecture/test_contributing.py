"""The examples in CONTRIBUTING.md work as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.architecture.source import ROOT

CHECK = """
from harness.core.registry import algorithm, build_task

ranked = algorithm("rank_grpo")
assert (ranked.name, ranked.advantage.kind, ranked.penalties) == ("rank_grpo", "rank", ())

import torch
from harness.core.parts import AdvantageInput

given = AdvantageInput(
    reward=torch.tensor([1.0, 0.0, 0.5, 7.0]), mask=torch.ones(4, 2, dtype=torch.bool),
    group=torch.tensor([0, 0, 0, 1]), num_groups=2, kept=torch.ones(4, dtype=torch.bool),
)
assert ranked.advantage(given).advantages[:, 0].tolist() == [1.0, -1.0, 0.0, 0.0]

task = build_task("reverse", {})
prompts = [task.item(split, i) for split in ("train", "validation", "test") for i in range(20)]
assert len({p.id for p in prompts}) == 60
assert task.grade(prompts[0], f" {prompts[0].answer}\\n", "stop").correct
assert not task.grade(prompts[0], "abc", "stop").correct
"""


def test_the_examples_work() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    code = "\n".join([*examples, CHECK])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]  # a process of its own: registering is for good
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
