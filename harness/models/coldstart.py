"""Cold starts of `tiny`: supervised training on `chain` until pass@1 is about .35; and those of its relatives.

`python -m harness.models.coldstart` regenerates `coldstarts/*.safetensors` and `coldstarts.json`: `tiny-{0..4}`,
`tiny-turns-0` (`harness.models.coldstart_turns`) and the mixtures of experts (`harness.models.coldstart_moe`), about
25 s per file on one thread and minutes for the deepest; `--only 'tiny-moe-l8-*'` makes some of them. One thread and
fixed seeds: the same machine and torch version give the same bytes. Nothing here is used in a run; a run reads the
files and checks their hashes.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from harness.models.tiny import EOS_ID, PAD_ID, tiny_model, tiny_tokenizer
from harness.models.weights import file_sha256, save_weights, unique_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.ports import SingleTurnTask, Split
    from harness.core.types import Prompt

FOLDER = Path(__file__).parent / "coldstarts"
SEEDS = (0, 1, 2, 3, 4)
MIX = {"direct": 0.2, "scratch": 0.25, "verbose": 0.55}  # verbose first: leaves RL a length to save
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
STOP_AT = (0.33, 0.38)  # pass@1 is steep in steps and decides the RL outcome, so it is what we stop on
FIRST_LOOK, LOOK_EVERY, MAX_STEPS = 100, 5, 600
LOOK_PROMPTS, FINAL_PROMPTS, SAMPLES, MAX_NEW_TOKENS = 256, 1024, 4, 35
_MEAN_ANSWER = 16.0  # constant denominator of the loss: a per-batch token mean would bias the style mix


def make_batch(
    task: SingleTurnTask, tokenizer: PreTrainedTokenizerBase, first: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Right-padded ids `[B, L]` and the mask of answer tokens (end token included)."""
    from tasks.chain import STYLES, cold_start_answer

    weights = torch.tensor([MIX[style] for style in STYLES])
    styles = torch.multinomial(weights, BATCH_SIZE, replacement=True, generator=generator).tolist()
    rows: list[tuple[list[int], list[int]]] = []
    for offset, style in enumerate(styles):
        prompt = task.item("train", first + offset)
        answer = cold_start_answer(prompt, STYLES[style])
        rows.append((tokenizer.encode(prompt.messages[-1]["content"]), [*tokenizer.encode(answer), EOS_ID]))
    return padded([(q + a, [False] * len(q) + [True] * len(a)) for q, a in rows])


def padded(rows: Sequence[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """Rows of ids and of what is to be learned, right-padded."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), PAD_ID)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, (line, learned) in enumerate(rows):
        ids[i, : len(line)] = torch.tensor(line)
        mask[i, : len(line)] = torch.tensor(learned)
    return ids, mask


@torch.no_grad()
def sample_ids(
    model: PreTrainedModel, contexts: Sequence[list[int]], max_new_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """One response per context at temperature 1, its end token included; contexts of one length share a batch."""
    from transformers import DynamicCache

    answers: list[list[int]] = [[] for _ in contexts]
    for length in sorted({len(ids) for ids in contexts}):
        chosen = [i for i, ids in enumerate(contexts) if len(ids) == length]
        ids = torch.tensor([contexts[i] for i in chosen])
        cache, tokens, done = DynamicCache(), [], torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            ids = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            ids = ids.masked_fill(done[:, None], EOS_ID)
            tokens.append(ids)
            done = done | (ids[:, 0] == EOS_ID)
            if done.all():
                break
        for i, row in zip(chosen, torch.cat(tokens, 1).tolist(), strict=True):
            answers[i] = row[: row.index(EOS_ID) + 1] if EOS_ID in row else row
    return answers


def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> list[list[tuple[str, bool]]]:
    """`samples` responses per prompt at temperature 1: (text, ended by itself)."""
    generator = torch.Generator().manual_seed(seed)
    contexts = [tokenizer.encode(prompt.messages[-1]["content"]) for prompt in prompts for _ in range(samples)]
    answers = sample_ids(model, contexts, max_new_tokens, generator)
    found = [(tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == EOS_ID) for ids in answers]
    return [found[i : i + samples] for i in range(0, len(found), samples)]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: SingleTurnTask,
    *,
    split: Split,
    first: int,
    num_prompts: int,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """pass@1, pass@samples and the share of each answer style, sampled at temperature 1."""
    prompts = [task.item(split, first + i) for i in range(num_prompts)]
    answers = sample_texts(model, tokenizer, prompts, samples=samples, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    right = [
        [task.grade(prompt, text, "stop" if ended else "length").correct for text, ended in row]
        for prompt, row in zip(prompts, answers, strict=True)
    ]
    styles = Counter(style_of(text) for row in answers for text, _ in row)
    total = num_prompts * samples
    return {
        "prompts": num_prompts,
        "samples": samples,
        "pass@1": round(sum(map(sum, right)) / total, 4),
        f"pass@{samples}": round(sum(map(any, right)) / num_prompts, 4),
        "styles": {style: round(styles[style] / total, 4) for style in MIX},
    }


def style_of(text: str) -> str:
    """The answer style a response is written in."""
    return "verbose" if "!" in text else "scratch" if "+" in text or "-" in text else "direct"


def train(
    seed: int, model: PreTrainedModel | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """One cold start, of `tiny` by default: trained on the train split, stopped and measured on two disjoint ranges of
    validation. What is measured at the end, and returned, has weights rounded to the dtype they are shipped in.
    """
    from tasks.chain import build

    task, tokenizer, model = build(credit=False), tiny_tokenizer(), model or tiny_model(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(1, MAX_STEPS + 1):
        first = ((seed + 1) << 40) + step * BATCH_SIZE  # far from the indices that a run draws
        ids, mask = make_batch(task, tokenizer, first, generator)
        loss = learn(model, optimizer, ids, mask, BATCH_SIZE * _MEAN_ANSWER)
        if step < FIRST_LOOK or step % LOOK_EVERY:
            continue
        look = measure(model, tokenizer, task, split="validation", first=1 << 40, num_prompts=LOOK_PROMPTS, seed=step)
        say(f"seed {seed} step {step} loss {loss:.3f} pass@1 {look['pass@1']:.3f}")
        if STOP_AT[0] <= look["pass@1"] <= STOP_AT[1]:
            shipped = rounded(model, dtype)
            final = measure(
                shipped, tokenizer, task, split="validation", first=1 << 41, num_prompts=FINAL_PROMPTS, seed=seed
            )
            if 0.31 <= final["pass@1"] <= 0.39:
                return shipped, {"seed": seed, "steps": step, **final}
    raise SystemExit(f"seed {seed}: pass@1 was never inside {STOP_AT} within {MAX_STEPS} steps")


@torch.no_grad()
def rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy that computes as before, its weights rounded to `dtype`."""
    result = copy.deepcopy(model)
    for weight in result.parameters():
        weight.copy_(weight.to(dtype))
    return result


def learn(model: PreTrainedModel, optimizer: Optimizer, ids: Tensor, mask: Tensor, tokens: float) -> float:
    """One step of supervised training; the loss, summed over what is to be learned and divided by `tokens`."""
    logits = model(input_ids=ids).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    loss = -logp[mask[:, 1:]].sum() / tokens
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def lessons() -> dict[str, tuple[Callable[[], tuple[PreTrainedModel, dict[str, Any]]], torch.dtype]]:
    """How every cold start is made, by its name, and the dtype it is shipped in."""
    from harness.models.coldstart_moe import moe_lessons
    from harness.models.coldstart_turns import train_turns

    found = {f"tiny-{seed}": (partial(train, seed), torch.float32) for seed in SEEDS}
    mixtures = {name: (lesson, torch.bfloat16) for name, lesson in moe_lessons().items()}
    return {**found, "tiny-turns-0": (train_turns, torch.float32), **mixtures}


def main(argv: list[str] | None = None) -> int:
    """Trains the cold starts and writes their files and `coldstarts.json`."""
    parser = argparse.ArgumentParser(prog="python -m harness.models.coldstart", description=__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="cold starts by name, or 'tiny-moe-*'")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weight files")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    index = options.out / "coldstarts.json"
    chosen = {n: x for n, x in lessons().items() if any(fnmatchcase(n, pattern) for pattern in options.only)}
    if not chosen:
        parser.error(f"--only {' '.join(options.only)}: no such cold start; there are {', '.join(lessons())}")
    for name, (lesson, dtype) in chosen.items():
        model, facts = lesson()
        path = options.out / f"{name}.safetensors"
        save_weights({key: tensor.to(dtype) for key, tensor in unique_tensors(model).items()}, path)
        entry = {"file": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size, **facts}
        say(json.dumps(entry))
        known = json.loads(index.read_text())["coldstarts"] if index.exists() else {}
        record = {
            "command": "python -m harness.models.coldstart",
            "task": "chain",
            "mix": MIX,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "coldstarts": dict(sorted({**known, name: entry}.items())),
        }
        index.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
