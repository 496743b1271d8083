"""Results -> Markdown tables, with a reason where there is no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.bench.claims import CLAIMS, Claim, of_the_peak
from harness.bench.run import FAILED, Result
from harness.bench.subjects import Subject

Results = Mapping[str, Result]
Column = tuple[str, Callable[[Result], str]]

TITLES = {
    "step": "Whole steps",
    "update": "The update alone",
    "switches": "What each saving is worth",
    "algorithms": "Algorithms",
    "scaling": "Twice the prompts, twice the siblings",
    "tiny": "The embedded model",
    "replay": "Routing Replay",
    "loss": "The objective",
}
NOTES = {
    "step": "8 prompts x 8 responses of at most 64 tokens. `-x4`: four optimizer steps per rollout batch, else one. "
    "`trl-checkpointing`: TRL's default gradient checkpointing, off elsewhere. `trl-bf16-weights`: weights and AdamW's "
    "moments in bfloat16, elsewhere TRL's bfloat16 is autocast over float32 weights; ours has float32 masters. "
    "Trained tokens/s: response tokens of the batch per second of forward, backward and optimizer.",
    "update": "On the recorded batch; no sampling, one optimizer step. `every-row`: rewards 0 1 0 1 ..., so that every "
    "row contributes. `recorded`: the rewards as sampled. TRL computes every row either way. Share of the peak: useful "
    "operations (`harness/bench/flops.py`) per second of forward and backward, over the matrix-multiply rate measured "
    "in the same process.",
    "switches": "The update on the recorded batch in bfloat16 with all savings on, and with one of them changed.",
    "algorithms": "Whole steps in bfloat16 with four optimizer steps, matched roster.",
    "scaling": "In bfloat16; every row contributes to the updates, the whole steps sample their own responses.",
    "tiny": "20 steps of 32 prompts on one thread.",
    "replay": "GRPO on tiny-moe, 20 steps of 32 prompts on one thread; `off` records routes too, for the metrics.",
    "loss": "Loss and backward of 512 x 1024 tokens through the shared objective and written inline; median of pairs.",
}


def seconds(key: str) -> Callable[[Result], str]:
    return lambda r: f"{r[key]:.2f}"


def share(*keys: str) -> Callable[[Result], str]:
    return lambda r: f"{sum(r[key] for key in keys) / r['step_s']:.1%}"


def gib(*keys: str) -> Callable[[Result], str]:
    return lambda r: f"{sum(r['memory_mib'].get(key, 0.0) for key in keys) / 1024:.2f}"


def trained_rate(r: Result) -> float:
    """Response tokens of the batch per second of forward, backward and optimizer."""
    return float(r["batch_tokens"] / (r["forward_s"] + r["backward_s"] + r["optimizer_s"]))


def _spread(r: Result) -> str:
    low, high = r["step_s_range"]
    return f"{r['step_s']:.2f} ({low:.2f}-{high:.2f})"


STEP: tuple[Column, ...] = (
    ("s/step (range)", _spread),
    ("generation s", seconds("generation_s")),
    ("sync s", seconds("sync_s")),
    ("forward + backward s", lambda r: f"{r['forward_s'] + r['backward_s']:.2f}"),
    ("optimizer s", seconds("optimizer_s")),
    ("outside", share("metrics_s", "detectors_s", "other_s")),
    ("generated tok/s", lambda r: f"{r['sampled_tokens'] / r['generation_s']:,.0f}" if r["generation_s"] else "-"),
    ("trained tok/s", lambda r: f"{trained_rate(r):,.0f}"),
    ("reward", lambda r: f"{r['rewards']['mean']:.3f} ± {r['rewards']['se']:.3f}"),
    ("start s", seconds("startup_s")),
)
MEMORY: tuple[Column, ...] = (
    ("peak GiB", gib("peak")),
    ("imports", gib("imports")),
    ("weights", gib("weights", "critic weights")),
    ("gradients", gib("gradients", "critic gradients")),
    ("optimizer", gib("optimizer", "critic optimizer")),
    ("engine or KV cache", gib("engine", "KV cache")),
    ("rest", gib("rest")),
)
UPDATE: tuple[Column, ...] = (
    ("forward + backward s", lambda r: f"{r['forward_s'] + r['backward_s']:.2f}"),
    ("optimizer s", seconds("optimizer_s")),
    ("step s (range)", _spread),
    ("trained tok/s", lambda r: f"{trained_rate(r):,.0f}"),
    ("informative groups", lambda r: f"{r['informative']:.0%}" if "informative" in r else "-"),
    ("useful GFLOP", lambda r: f"{r['useful_flops'] / 1e9:,.0f}" if "useful_flops" in r else "-"),
    ("matmul GFLOP/s", lambda r: f"{r['matmul_flops_per_s'] / 1e9:,.0f}" if "useful_flops" in r else "-"),
    ("of the peak", lambda r: f"{of_the_peak(r):.0%}" if "useful_flops" in r else "-"),
    ("peak GiB", gib("peak")),
)
TINY: tuple[Column, ...] = (
    ("ms/step", lambda r: f"{1000 * r['step_s']:.0f}"),
    *((key, share(f"{key}_s")) for key in ("generation", "forward", "backward", "optimizer")),
    *((key, share(f"{key}_s")) for key in ("metrics", "detectors", "other")),
    ("tok/s", lambda r: f"{r['tokens_per_s']:,.0f}"),
    ("peak above imports MiB", lambda r: f"{r['memory_mib']['peak'] - r['memory_mib']['imports']:.0f}"),
)
LOSS: tuple[Column, ...] = (
    ("shared ms", lambda r: f"{r['ours_ms']:.1f}"),
    ("inline ms", lambda r: f"{r['inline_ms']:.1f}"),
    ("ratio", lambda r: f"{r['ratio']:.2f}"),
)
COLUMNS: Mapping[str, tuple[tuple[Column, ...], ...]] = {
    "step": (STEP, MEMORY),
    "update": (UPDATE, MEMORY),
    "switches": (UPDATE,),
    "algorithms": (STEP, MEMORY),
    "scaling": (UPDATE,),
    "tiny": (TINY,),
    "replay": (TINY,),
    "loss": (LOSS,),
}


def document(subjects: Sequence[Subject], results: Results) -> str:
    """All sections that were measured, and the ratios that can be formed."""
    parts = [claims_table(results)]
    for section, title in TITLES.items():
        names = [s.name for s in subjects if s.section == section]
        if not names:
            continue
        parts.append(f"## {title}\n\n{NOTES[section]}")
        parts += [table(names, results, columns) for columns in COLUMNS[section]]
        parts += [f"{name} could not run: {results[name][FAILED]}" for name in names if FAILED in results[name]]
    return "\n\n".join(part for part in parts if part)


def table(names: Sequence[str], results: Results, columns: Sequence[Column]) -> str:
    """Aligned, so that it reads in a terminal too."""
    head = ["", *(title for title, _ in columns)]
    lines = [
        [name, *("could not run" if FAILED in results[name] else form(results[name]) for _, form in columns)]
        for name in names
    ]
    return aligned(head, lines)


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded cells: the first column to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def row(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([row(head), f"|{rule}|", *(row(line) for line in lines)])


def claims_table(results: Results) -> str:
    """The ratios of this run beside what they are meant to reach."""
    lines = [
        [claim.name, claim.said(value), claim.target] for claim in CLAIMS if (value := claim.value(results)) is not None
    ]
    return f"## Ratios of this run\n\n{aligned(['', 'measured', 'target'], lines)}" if lines else ""


def claims_json(results: Results) -> list[dict[str, Any]]:
    """The same as data; null where a subject is missing or could not run."""
    return [_claim_json(claim, results) for claim in CLAIMS]


def _claim_json(claim: Claim, results: Results) -> dict[str, Any]:
    return {"name": claim.name, "value": claim.value(results), "low": claim.low, "high": claim.high}
