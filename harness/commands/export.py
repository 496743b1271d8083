"""`harness export`: a run's policy as a standard Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.core.checkpoints import find
from harness.core.results import RunFolder, read_run
from harness.core.spec import RunSpec


def run_export(run: Path, hf: Path, which: str, as_json: bool) -> int:
    """Writes the folder and says where it is."""
    made = export_policy(run, hf, which)
    if as_json:
        print(json.dumps({"folder": str(hf), "step": made.step, "sha256": made.hashes}))
    else:
        print(f"{hf}: step {made.step} of {run.name}, {made.parameters:,} parameters, {made.dtype}")
        print(f"read back: the same weights, sha256 {made.hashes['weights'][:16]}")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    step: int
    hashes: Mapping[str, str]
    parameters: int
    dtype: str


def export_policy(run: Path, hf: Path, which: str) -> Exported:
    """Loads the checkpoint and writes the folder."""
    from harness.models.codec import TextCodec
    from harness.models.export import check_target, hub_id, save_folder
    from harness.models.load import load
    from harness.models.template import style_of
    from harness.models.weights import unique_tensors, weights_sha256
    from harness.train import checkpoint
    from harness.train.optimizer import Optimizer
    from harness.train.update import Optimizers

    check_target(hf)
    folder = read_run(run)
    spec = folder.spec
    chosen = find(run, which, margin=spec.checkpoints.margin)
    model = load(spec.model, seed=spec.seed, device="cpu", dtype=spec.backend.dtype)
    initial = model.sha256
    optimizer = Optimizer(model.policy, spec.recipe, spec.recipe.lr)
    progress, _ = checkpoint.load(chosen, Optimizers(policy=optimizer), moments=False, critic=False)
    codec = TextCodec(model.tokenizer, spec.task.template)
    hashes = {
        "weights": weights_sha256(unique_tensors(model.policy)),
        "initial weights": initial,
        "tokenizer": codec.tokenizer_sha256,
        "prompt template": codec.template_sha256,
    }
    facts = {
        "step": f"{progress.step} ({which})" if which != str(progress.step) else str(progress.step),
        "sampled tokens": f"{progress.sampled_tokens:,}",
        "prompts in training": f"{style_of(model.tokenizer, spec.task.template)}, rendered by the template in force",
        "ids that end a response": ", ".join(map(str, model.eos_ids)),
    }
    save_folder(model, card(folder, progress.step, facts, hashes, hub_id(spec.model.name)), hf)
    return Exported(step=progress.step, hashes=hashes, parameters=model.parameters, dtype=spec.backend.dtype)


def card(run: RunFolder, step: int, facts: Mapping[str, str], hashes: Mapping[str, str], base_model: str | None) -> str:
    """The model card: what it is, where it came from, how prompts looked in training; no path of any machine."""
    spec, result = run.spec, run.result
    rows = {
        "algorithm": f"{spec.arm} ({spec.algorithm}, roster {spec.roster})",
        "deviations from its preset": "; ".join(_deviations(run)) or "none",
        "task": f"{_last(spec.task.name)} {spec.task.params or ''}".strip(),
        "base model": base_model or _last(spec.model.name),
        "seed": str(spec.seed),
        **facts,
        "sampling temperature": f"{spec.recipe.temperature:g}",
        "longest response in training": f"{spec.recipe.max_new_tokens} tokens",
        "system prompt": spec.task.template.system or "none",
        "stop strings": ", ".join(map(repr, spec.task.template.stop)) or "none",
        **_scores(run, step),
    }
    if result is not None:
        p = result.provenance
        packages = ", ".join(f"{n} {v}" for n, v in p.packages.items() if n in ("torch", "transformers", "vllm"))
        rows["made with"] = (
            f"harness {p.harness_version}, numerics version {p.numerics_version}, "
            f"commit {(p.git_commit or 'unknown')[:12]}, Python {p.python}, {packages}, {p.cpu}, {p.started}"
        )
    rows |= {f"sha256 of {name}": f"`{value}`" for name, value in hashes.items()}
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"base_model: {base_model}"] if base_model else []
    front += ["tags:", "- reinforcement-learning", f"- {spec.algorithm}", "---"]
    table = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(
        [
            *front, "", f"# {run.run_id}, step {step}", "",
            f"A policy trained by reinforcement learning with {spec.arm} on {_last(spec.task.name)}.", "",
            "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            'model = AutoModelForCausalLM.from_pretrained("<this folder>")',
            'tokenizer = AutoTokenizer.from_pretrained("<this folder>")', "```", "",
            "| | |", "|---|---|", *table, "",
            "The licence is that of the base model.", "",
        ]
    )  # fmt: skip


def _deviations(run: RunFolder) -> list[str]:
    """Without the path that a started run carries in its deviations."""
    from harness.core.resolve import deviations, resolve

    spec = RunSpec.model_validate({**run.spec.model_dump(), "start": None})
    found = [*deviations(spec, resolve(spec))]
    if run.spec.start is not None:
        found.append(f"starts from {_last(run.spec.start.run)} ({run.spec.start.checkpoint})")
    return found


def _scores(run: RunFolder, step: int) -> dict[str, str]:
    """Held-out scores before training and at this checkpoint, as far as they were measured there."""
    found = {}
    for e in run.evals:
        name = f"{e.split} score (avg@{e.samples}, {len(e.questions)} questions)"
        if e.step == step:
            found[f"{name} of this checkpoint"] = f"{e.score:.4f}"
        elif e.step == 0:
            found[f"{name} before training"] = f"{e.score:.4f}"
    return found


def _last(name: str) -> str:
    """A path's last part, anything else as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.count("/") != 1 or name[0] in "./~" else name


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
