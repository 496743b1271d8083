"""One seeded trace: a change of it is a change of every result, and `NUMERICS_VERSION` must be raised with it.

Write it anew with `python -m tests.run.test_golden_trace`.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

from harness import NUMERICS_VERSION
from harness.core.results import EVALS, STEPS, read_lines
from harness.run import execute
from tests.fakes.small_runs import run_spec

FILE = Path(__file__).with_name("golden_trace.json")
STEPS_KEPT = 4
KEYS = (
    "sampled_tokens_cum", "trained_tokens_cum", "optimizer_steps_cum", "reward/mean", "signal/zero_var_frac",
    "len/mean", "entropy/exact", "loss/total/first", "loss/total/last", "grad/norm_pre/first", "grad/norm_pre/last",
    "ratio/tok_max/last", "clip/tok_any/max", "kl_old/k3/last", "update/param_norm", "update/rel",
)  # fmt: skip


def measure() -> dict[str, Any]:
    """GRPO of the matched roster: 8 prompts x 8 responses, four updates per step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        execute(run_spec("grpo", steps=STEPS_KEPT, recipe={"prompts_per_step": 8}), folder)
        rows = [{k: row[k] for k in KEYS} for row in read_lines(folder / STEPS)]
        scores = [[e["split"], e["step"], e["score"]] for e in read_lines(folder / EVALS)]
    return {"numerics_version": NUMERICS_VERSION, "rows": rows, "scores": scores}


def test_the_trace_has_not_moved() -> None:
    """Tight in the first step; later ones may differ by what another processor's rounding grows to."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert golden["numerics_version"] == NUMERICS_VERSION, "write the trace anew"
    found = measure()
    assert len(golden["rows"]) == len(found["rows"]) == STEPS_KEPT
    for number, (old, new) in enumerate(zip(golden["rows"], found["rows"], strict=True)):
        assert old.keys() == new.keys() == set(KEYS)
        tolerance = 1e-3 if number == 0 else 3e-2
        for key, value in old.items():
            if value is None:
                assert new[key] is None, key
            else:
                assert math.isfinite(new[key]), key
                assert new[key] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), f"step {number + 1}, {key}"
    assert [s[:2] for s in found["scores"]] == [s[:2] for s in golden["scores"]]
    assert [s[2] for s in found["scores"]] == pytest.approx([s[2] for s in golden["scores"]], abs=0.13)


if __name__ == "__main__":
    FILE.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
