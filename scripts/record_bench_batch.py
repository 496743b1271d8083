"""Records the rollout batch on which `harness bench` measures updates: 16 prompts x 16 responses of natural length.

    OMP_NUM_THREADS=2 python scripts/record_bench_batch.py harness/bench/recorded/chain_sum.safetensors

SmolLM2-135M-Instruct on two-term chain-sum at temperature 1 in float32, seed 0; about two minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

import torch

from harness.assemble import assemble
from harness.bench.batch import from_groups, save
from harness.bench.ours import step_spec
from harness.bench.subjects import MODEL, TASK, TASK_PARAMS, Subject
from harness.core.provenance import package_versions
from harness.rollout.order import MAIN, train_prompts

PROMPTS, SIBLINGS, SEED = 16, 16, 0


def main() -> None:
    """Command line: the target file."""
    torch.set_num_threads(int(torch.get_num_threads()))
    spec = step_spec(Subject(name="recording", section="", who="ours", work="step", prompts=PROMPTS, siblings=SIBLINGS))
    parts = assemble(spec)
    prompts = train_prompts(parts.task, SEED, MAIN, 0, PROMPTS)
    groups = parts.collector.collect(prompts, SIBLINGS, (SEED, 0)).groups
    versions = {name: v for name, v in package_versions().items() if name in ("torch", "transformers")}
    facts = {
        "model": MODEL,
        "model_sha256": parts.model.sha256,
        "task": TASK,
        "task_params": TASK_PARAMS,
        "temperature": spec.recipe.temperature,
        "max_new_tokens": spec.recipe.max_new_tokens,
        "dtype": spec.backend.dtype,
        "seed": SEED,
        "versions": versions,
    }
    batch = from_groups(groups, facts)
    save(batch, Path(sys.argv[1]))
    part = batch.part(8, 8)
    for name, b in {"all": batch, "8 x 8": part}.items():
        lengths = [len(r) for siblings in b.responses for r in siblings]
        print(
            f"{name}: {len(b.prompts)} prompts of {fmean(map(len, b.prompts)):.1f} tokens, responses of "
            f"{fmean(lengths):.1f} (longest {max(lengths)}), reward {fmean(r for x in b.rewards for r in x):.3f}, "
            f"{sum(b.informative)} of {len(b.informative)} groups informative"
        )


if __name__ == "__main__":
    main()
