"""The plug-in in README.md works as printed: its text and entry point, installed the way a package manager would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.architecture.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## Add your own algorithm\n")[1].split("\n## ")[0]

CHECK = """
import math
import torch
from harness.core.registry import algorithm, algorithm_names
from harness.train.objective import batch_totals, policy_loss
from harness.study.arms import build_arm

assert "dr_gspo" in algorithm_names()  # through the entry point alone
record = algorithm("dr_gspo")
assert build_arm("dr_gspo", "matched", several_rosters=False).algorithm == "dr_gspo"

# Two responses of 2 and 3 tokens, A = +-1: s is 1.002 (inside the range) and exp(-0.01) (below it, so clipped).
mask = torch.tensor([[True, True, False], [True, True, True]])
old = torch.zeros(2, 3, dtype=torch.float64)
logp = torch.tensor([[0.001, math.log(1.002) * 2 - 0.001, 9.0], [-0.01, -0.01, -0.01]], dtype=torch.float64)
logp.requires_grad_()
advantages = torch.tensor([[1.0] * 3, [-1.0] * 3], dtype=torch.float64)
out = policy_loss(record, logp=logp, old_logp=old, ref_logp=None, entropy=None, advantages=advantages, mask=mask,
                  totals=batch_totals(mask, torch.tensor([0, 0]), width=10.0))
out.loss.backward()
assert abs(float(out.loss) - (-1.002 * 2 + (1 - 3e-3) * 3) / 20) < 1e-12
expected = torch.tensor([[-1.002 / 20] * 2 + [0.0], [0.0] * 3], dtype=torch.float64)
torch.testing.assert_close(logp.grad, expected)
assert out.clipped_low.tolist() == [[False] * 3, [True] * 3]
"""


def test_the_plug_in_works(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    [project] = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)
    assert len(code.splitlines()) < 60
    settings = tomllib.loads(project)["project"]
    [(name, module)] = settings["entry-points"]["harness.algorithms"].items()
    assert f"`{module.replace('.', '/')}.py`" in SECTION
    file = tmp_path / (module.replace(".", "/") + ".py")
    file.parent.mkdir()
    (file.parent / "__init__.py").touch()
    file.write_text(code, encoding="utf-8")
    meta = tmp_path / f"{settings['name'].replace('-', '_')}-{settings['version']}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {settings['name']}\nVersion: {settings['version']}\n")
    (meta / "entry_points.txt").write_text(f"[harness.algorithms]\n{name} = {module}\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    commands = (
        ["-c", CHECK],
        ["-c", "from harness.cli import main; main()", "microscope", "--fixture", "-a", "grpo,gspo,dr_gspo"],
    )
    for command in commands:  # each in a process of its own: what is registered stays
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 0, done.stderr
    assert "C dr gspo" in done.stdout
    assert (tmp_path / "microscope" / "microscope.html").exists()
