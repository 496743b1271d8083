"""Checks and measures the backbone on a GPU: gradients, all six algorithms, throughput, utilisation, memory.

Usage: python scripts/gpu_check.py [--device cuda] [--small] [--write FILE]
Needs torch, transformers and pydantic with what they bring; no vLLM, no network, no model files. `make gpu-check` runs
it on the first GPU and writes results/reference/performance-gpu.md; without a GPU it measures nothing and says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from algorithms.arms import ARMS, arm_overrides
from harness import NUMERICS_VERSION
from harness.assemble import Assembly, assemble
from harness.core.ports import SingleTurnTask, Split, TaskInfo
from harness.core.registry import register_task
from harness.core.spec import BackendSpec, RunSpec, UpdateSpec
from harness.core.types import FinishReason, Grade, Prompt
from harness.models.recipes import recipe
from harness.run import execute
from harness.train.loop import Progress
from harness.train.prepare import Prepared, prepare
from harness.train.update import Rates, old_logps, plan_updates, update

SIX = ("ppo", "grpo", "dapo", "gspo", "gspo_token", "gfpo_shortest")
PLAIN = UpdateSpec(share_prompts=False, skip_rows=False, sort_by_length=False, chunk_logits=False, reuse_forward=False)
ALL = UpdateSpec(share_prompts=True)
SWITCHES = {
    "all on": ALL,
    "prompts not shared": ALL.model_copy(update={"share_prompts": False}),
    "rows not skipped": ALL.model_copy(update={"skip_rows": False}),
    "not sorted by length": ALL.model_copy(update={"sort_by_length": False}),
    "logits not chunked": ALL.model_copy(update={"chunk_logits": False}),
    "first forward not reused": ALL.model_copy(update={"reuse_forward": False}),
    "activations recomputed": ALL.model_copy(update={"checkpoint_activations": True}),
    "compiled": ALL.model_copy(update={"compile": True}),
    "all off": PLAIN,
}
REPEATS = 3


class Coin(SingleTurnTask):
    """Grades by a hash of the response: half of the responses are right, so that every group has something to learn."""

    info = TaskInfo(name="coin", reward_range=(0.0, 1.0), threshold=1.0)

    def item(self, split: Split, index: int) -> Prompt:
        digits = [str((index * 7 + i * i) % 10) for i in range(16 + index % 16)]
        message = {"role": "user", "content": " ".join([*digits, "?"])}
        return Prompt(id=f"{split}-{index}", messages=(message,), answer="")

    def grade(self, prompt: Prompt, text: str, finish_reason: FinishReason) -> Grade:
        right = hashlib.sha256(f"{prompt.id} {text}".encode()).digest()[0] % 2 == 0
        return Grade(score=float(right), correct=right, extracted=None, why="by chance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how large."""

    device: str
    dtype: str
    model: str
    prompts: int
    new_tokens: int
    micro_batch_tokens: int


def random_model(folder: Path, small: bool) -> str:
    """A Qwen3 of 0.6B parameters (or a small one) with random weights and the embedded model's tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from harness.models.tiny import EOS_ID, PAD_ID, tiny_tokenizer

    size: dict[str, Any] = {
        "hidden_size": 64 if small else 1024,
        "intermediate_size": 128 if small else 3072,
        "num_hidden_layers": 2 if small else 28,
        "num_attention_heads": 4 if small else 16,
        "num_key_value_heads": 2 if small else 8,
        "head_dim": 16 if small else 128,
        "vocab_size": 1000 if small else 151_936,
    }
    config = Qwen3Config(
        **size, tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=EOS_ID, pad_token_id=PAD_ID
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def spec_of(arm: str, setting: Setting, update: UpdateSpec, steps: int = 2) -> RunSpec:
    """A run of an arm of the matched roster; `tiny` on its own task, the random model on coins."""
    tiny = setting.model == "tiny"
    overrides = arm_overrides(arm, "matched")
    if arm == "ppo":
        overrides = {**overrides, "advantage.warmup_steps": 0}  # both networks are to be updated
    base = recipe("tiny") if tiny else {**recipe("tiny"), "lr": 1e-6, "critic_lr": 1e-5}
    sizes = {
        "prompts_per_step": setting.prompts,
        "max_new_tokens": 35 if tiny else setting.new_tokens,
        "micro_batch_tokens": setting.micro_batch_tokens,
        "overrides": {},
    }
    return RunSpec.model_validate(
        {
            "numerics_version": NUMERICS_VERSION,
            "arm": arm,
            "algorithm": ARMS[arm].algorithm,
            "overrides": overrides,
            "task": {"name": "chain" if tiny else "coin"},
            "model": {"name": setting.model},
            "recipe": {**base, **sizes},
            "budget": {"steps": steps},
            "seed": 0,
            "eval": {"points": 1, "prompts": 8, "final_prompts": 16},
            "backend": BackendSpec(device=setting.device, dtype=setting.dtype, update=update).model_dump(),  # type: ignore[arg-type]
        }
    )


def prepared(parts: Assembly) -> Prepared:
    """A rollout batch, ready for its updates."""
    t = parts.trainer
    gathered = t.gather(t.algorithm, t.recipe, Progress())
    return prepare(t.collate(gathered.groups), t.algorithm, t.nets, t.facts, (0, 0), ())


def run_updates(parts: Assembly, ready: Prepared) -> int:
    """All optimizer steps of a batch at learning rate 0; returns the tokens in their backward passes."""
    t = parts.trainer
    plan = plan_updates(ready, t.algorithm, (0, 1))
    old = old_logps(ready, plan, t.algorithm, t.nets).clone()
    still = Rates(policy=0.0, critic=0.0)
    steps = update(ready, t.algorithm, t.nets, t.optimizers, still, old, plan, width=t.recipe.max_new_tokens)
    return sum(int(done.policy.mask.sum()) for done in steps if done.policy is not None)


def gradient_differences(setting: Setting) -> dict[str, float]:
    """||g - g_plain|| / ||g_plain|| of the last mini-batch under every switch, in float32."""
    parts = assemble(spec_of("grpo", setting, PLAIN))
    ready = prepared(parts)
    run_updates(parts, ready)
    wanted = gradient(parts)
    found = {}
    for name, choices in SWITCHES.items():
        other = assemble(spec_of("grpo", setting, choices))
        run_updates(other, replace(ready, old_logp=None))
        mine = gradient(other)
        found[name] = float((mine - wanted).norm() / wanted.norm())
    return found


def gradient(parts: Assembly) -> torch.Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.float().flatten() for p in parts.model.policy.parameters() if p.grad is not None])


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall-clock seconds of a call, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def matmul_peak(setting: Setting) -> float:
    """FLOP/s of a large square product in the training precision."""
    n = 1024 if setting.device == "cpu" else 8192
    a = torch.randn(n, n, device=setting.device).to(getattr(torch, setting.dtype))
    a @ a
    return 2 * n**3 * 5 / min(seconds(lambda: [a @ a for _ in range(5)], setting.device)[0] for _ in range(3))


def useful_flops(parts: Assembly, ready: Prepared, trained: int) -> float:
    """6 per trained token and matrix parameter, 6 per prompt token and decoder parameter; prompts counted once.

    Attention products and every repeated or recomputed forward are left out, so the utilisation is a lower bound.
    """
    matrices = {n: p.numel() for n, p in parts.model.policy.named_parameters() if p.dim() == 2}
    vocabulary = sum(size for name, size in matrices.items() if "embed_tokens" in name)
    decoder = sum(matrices.values()) - vocabulary
    prompts = sum(len(p) for p in ready.rows.prompts)
    return 6.0 * ((decoder + vocabulary) * trained + decoder * prompts)


def measure(setting: Setting, name: str, choices: UpdateSpec, peak: float) -> dict[str, Any]:
    """Median seconds of generation and update, and peak memory of the update, under one set of choices."""
    cuda = setting.device != "cpu"
    parts = assemble(spec_of("grpo", setting, choices))
    ready = prepared(parts)
    run_updates(parts, ready)  # warm-up
    generation = [seconds(lambda: prepared(parts), setting.device)[0] for _ in range(REPEATS)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    timed = [seconds(lambda: run_updates(parts, ready), setting.device) for _ in range(REPEATS)]
    took, trained = statistics.median(t for t, _ in timed), timed[0][1]
    sampled = int(ready.batch.mask.sum())
    return {
        "choices": name,
        "generated_tokens_per_s": sampled / statistics.median(generation),
        "trained_tokens_per_s": trained / took,
        "utilisation": useful_flops(parts, ready, trained) / took / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def study(setting: Setting, folder: Path) -> dict[str, str]:
    """Two steps of every algorithm through the run folder, checkpoints and evaluation included."""
    found = {}
    for arm in SIX:
        spec = spec_of(arm, setting, ALL)
        result = execute(spec, folder / arm)
        found[arm] = "interrupted" if result is None else f"{result.status}, {result.optimizer_steps} optimizer steps"
        del result
        if setting.device != "cpu":
            torch.cuda.empty_cache()
    return found


def check(device: str, small: bool) -> dict[str, Any]:
    """Everything, in order; progress goes to stderr."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    register_task("coin", lambda argument="", **params: Coin())
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as place:
        model = random_model(Path(place) / "model", small)
        tiny = Setting(device=device, dtype="float32", model="tiny", prompts=8, new_tokens=35, micro_batch_tokens=400)
        large = Setting(
            device=device,
            dtype="float32" if small else "bfloat16",
            model=model,
            prompts=4 if small else 32,
            new_tokens=16 if small else 256,
            micro_batch_tokens=2048 if small else 65536,
        )
        say("1/4 gradients under every switch against the plain path, float32")
        gradients = gradient_differences(tiny)
        say("2/4 two steps of every algorithm on the embedded model")
        studies = {"tiny": study(tiny, Path(place) / "tiny")}
        say("3/4 the same on the large model with random weights")
        studies["large"] = study(large, Path(place) / "large")
        say("4/4 throughput, utilisation and memory under every switch")
        peak = matmul_peak(large)
        rows = [measure(large, name, choices, peak) for name, choices in SWITCHES.items()]
        parameters = sum(p.numel() for p in assemble(spec_of("grpo", large, ALL)).model.policy.parameters())
    return {
        "device": torch.cuda.get_device_name(0) if device != "cpu" else platform.processor() or "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": _version()},
        "parameters": parameters,
        "setting": large_setting(large),
        "gradient_differences": gradients,
        "studies": studies,
        "matmul_peak_tflops": peak / 1e12,
        "rows": rows,
    }


def large_setting(setting: Setting) -> dict[str, Any]:
    """What the throughput was measured with."""
    return {
        "prompts": setting.prompts,
        "responses_per_prompt": 8,
        "new_tokens": setting.new_tokens,
        "dtype": setting.dtype,
        "micro_batch_tokens": setting.micro_batch_tokens,
    }


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Performance on a GPU",
        "",
        f"{found['device']}; Python {found['versions']['python']}, torch {found['versions']['torch']}, transformers "
        f"{found['versions']['transformers']}. Made by `make gpu-check`.",
        "",
        f"A Qwen3 of {found['parameters']:,} parameters with random weights, {json.dumps(found['setting'])}. "
        f"Peak of a large matrix product: {found['matmul_peak_tflops']:.3g} TFLOP/s. Utilisation counts useful FLOPs "
        "only: prompts once, no attention, nothing repeated.",
        "",
        "| update | generated tokens/s | trained tokens/s | utilisation | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        memory = "n/a" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        lines.append(
            f"| {row['choices']} | {row['generated_tokens_per_s']:,.0f} | {row['trained_tokens_per_s']:,.0f} "
            f"| {row['utilisation']:.1%} | {memory} |"
        )
    lines += ["", "Gradient against the plain path, float32, embedded model: relative difference", ""]
    lines += [f"* {name}: {value:.1e}" for name, value in found["gradient_differences"].items()]
    for model, arms in found["studies"].items():
        lines += ["", f"Two steps of every algorithm, {model} model:", ""]
        lines += [f"* {arm}: {said}" for arm, said in arms.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every gradient agrees and every run completes, 1 otherwise, 2 without the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a model of 0.2 M parameters, to try the script anywhere")
    parser.add_argument("--write", type=Path, help="also write the report to this file")
    given = parser.parse_args(arguments)
    if given.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured and nothing written", file=sys.stderr)
        return 2
    found = check(given.device, given.small)
    text = report(found)
    print(text)
    if given.write is not None:
        given.write.write_text(text, encoding="utf-8")
    exact = all(value < 1e-3 for value in found["gradient_differences"].values())
    done = all(said.startswith("completed") for arms in found["studies"].values() for said in arms.values())
    return 0 if exact and done else 1


if __name__ == "__main__":
    sys.exit(main())
