"""Where the time of the update goes: `python scripts/profile_update.py update-ours-bf16-every-row [--threads 2]`.

Runs a subject of `harness bench` (the update on the recorded batch) until memory is warm, then once under torch's
profiler, and prints Markdown: seconds by kind of operation, and how far the matrix products of these very shapes are
from the rate of a large one. The profiler makes every operation somewhat dearer; compare shares, not totals.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict

KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::baddbmm"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::clone", "aten::index", "aten::index_add_"),
    "softmax, exp, sums over the vocabulary": ("aten::exp", "aten::_softmax", "aten::_log_softmax", "aten::logsumexp"),
    "optimizer": ("aten::_fused_adamw_", "aten::linalg_vector_norm"),
}
WARM = 4


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from harness.backends.executors.environment import run_environment
    from harness.bench.subjects import catalogue

    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # glibc reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], run_environment(options.threads, os.environ))
    found = [
        s for s in catalogue("transformers") if s.name == options.subject and s.work == "update" and s.who == "ours"
    ]
    if not found:
        parser.error(f"no such subject: {options.subject}; see `harness bench --list`, the update of this project")

    import torch
    from torch.profiler import ProfilerActivity, profile

    from harness.assemble import assemble
    from harness.bench.flops import matmul_peak, shape_of, useful_flops
    from harness.bench.ours import batch_of, on_this_machine, replayed, step_spec
    from harness.train.loop import Progress, one_step

    subject = found[0].model_copy(update={"threads": options.threads})
    torch.set_num_threads(options.threads)
    batch = batch_of(subject)
    parts = replayed(assemble(on_this_machine(step_spec(subject))), batch)
    parts.sampler.sync(0)
    progress = Progress()
    for _ in range(WARM):
        progress = one_step(parts.trainer, progress, 0.0).progress
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        one_step(parts.trainer, progress, 0.0)

    seconds: dict[str, float] = defaultdict(float)
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    for event in profiled.key_averages():
        seconds[kind_of.get(event.key, "other elementwise operations and overhead")] += event.self_cpu_time_total / 1e6
    whole = sum(seconds.values())
    print(f"`{subject.name}`, {options.threads} threads, {whole:.2f} s under the profiler\n")
    print("| operations | seconds | share |\n|---|---:|---:|")
    for kind, value in sorted(seconds.items(), key=lambda kv: -kv[1]):
        print(f"| {kind} | {value:.2f} | {value / whole:.0%} |")
    lengths = [
        (len(p), [len(r) for r in rs])
        for p, rs, informative in zip(batch.prompts, batch.responses, batch.informative, strict=True)
        if informative
    ]
    useful, peak = useful_flops(shape_of(parts.model.policy), lengths), matmul_peak(subject.dtype)
    print(
        f"\nUseful operations {useful / 1e9:,.0f} GFLOP; at the rate of one large matrix product "
        f"({peak / 1e9:,.0f} GFLOP/s) they take {useful / peak:.2f} s. The matrix products of this update run at "
        f"{useful / seconds['matrix products'] / peak:.0%} of that rate; even if all else were free, that is the bound."
    )


if __name__ == "__main__":
    main()
