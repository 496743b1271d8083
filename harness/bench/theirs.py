"""Measures TRL's GRPOTrainer: whole steps, or the update alone on the recorded batch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from harness.bench.memory import account, kv_cache_mib, peak_mib, resident_mib, training_mib
from harness.bench.ours import PHASES, batch_of, reward_numbers, step_spec
from harness.bench.subjects import Subject
from harness.bench.trl_grpo import Grader, TrlSettings, build_trainer, quiet
from harness.core.errors import InfrastructureError, UsageError
from harness.core.ports import SingleTurnTask
from harness.core.registry import build_task
from harness.core.spec import RunSpec
from harness.core.types import Prompt
from harness.models.codec import TextCodec
from harness.models.smollm2 import converted
from harness.rollout.order import MAIN, train_prompts

MICRO_ROWS = 8  # rows of one forward: the default of per_device_train_batch_size
VLLM_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


class RememberedRewards:
    """A reward function that keeps what it gave."""

    __name__ = "task"

    def __init__(self, reward: Callable[..., list[float]]) -> None:
        self._reward = reward
        self.given: list[float] = []

    def __call__(self, **columns: Any) -> list[float]:
        found = self._reward(**columns)
        self.given += found
        return found


def prepare_import(subject: Subject) -> None:
    """TRL imports vLLM wherever it is installed; where it is not used, its memory must not count against TRL."""
    quiet()
    if subject.sampler == "vllm":
        os.environ.update(VLLM_ENVIRONMENT)
    else:
        sys.modules["vllm"] = None  # type: ignore[assignment]  # Python's own mark for "cannot be imported"


def settings_of(subject: Subject) -> TrlSettings:
    """Our recipe in TRL's words."""
    rows = subject.prompts * subject.siblings // subject.optimizer_steps
    return TrlSettings.of(
        step_spec(subject).recipe,
        siblings=subject.siblings,
        mini_batches=subject.optimizer_steps,
        accumulation=max(1, rows // MICRO_ROWS),
        rollouts=subject.warm_up + subject.steps,
        bf16=subject.dtype == "bfloat16",
        weights=subject.trl_weights,
        gradient_checkpointing=subject.gradient_checkpointing,
        vllm=subject.sampler == "vllm",
    )


def measure_trl(subject: Subject) -> dict[str, Any]:
    """The same numbers as for us. TRL gets the folder of the model, as its users give it."""
    prepare_import(subject)
    import torch
    from transformers import AutoTokenizer

    try:
        from harness.bench.trl_timed import Timed
    except ImportError as error:
        raise UsageError("TRL", f"it cannot be imported ({error})", "pip install trl") from error
    torch.set_num_threads(subject.threads)
    begun = time.perf_counter()
    settings, spec = settings_of(subject), step_spec(subject)
    folder = str(converted())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    task = build_task(spec.task.name, spec.task.params)
    assert isinstance(task, SingleTurnTask)
    prompts = prompts_of(task, settings)
    if subject.work == "update":
        reward, others = replaying(subject)
    else:
        reward, others = Grader(task, prompts, (tokenizer.eos_token_id,)), {}
    remembered = RememberedRewards(reward)
    with TemporaryDirectory() as place:
        trainer = build_trainer(
            settings,
            model=folder,
            tokenizer=tokenizer,
            prompts=prompts,
            reward=remembered,
            folder=place,
            chat=True,
            kind=Timed,
            **others,
        )
        assert isinstance(trainer, Timed)
        startup, assembled = time.perf_counter() - begun, resident_mib()
        trainer.train()
    expected = batch_of(subject).prompts[0] if subject.work == "update" else first_prompt(spec, tokenizer, prompts)
    longest = max(map(len, trainer.prompt_ids))
    if tuple(trainer.prompt_ids[0]) != expected:
        raise InfrastructureError("TRL shows the model other prompt tokens than we do, so nothing can be compared")
    return {
        "startup_s": startup,
        "steps": [step_numbers(s) for s in trainer.steps[subject.warm_up :]],
        "rewards": reward_numbers(remembered.given),
        "memory_mib": memory_of(subject, trainer.model, longest + settings.max_new_tokens, assembled),
    }


def first_prompt(spec: RunSpec, tokenizer: Any, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The first prompt's tokens as our model sees them."""
    return TextCodec(tokenizer, spec.task.template).encode(prompts[0].messages)


def memory_of(subject: Subject, model: Any, positions: int, assembled: float) -> dict[str, float]:
    """The peak by component; AdamW works on the weights themselves, in their type.

    `imports` is what the assembled trainer holds beyond its weights: with vLLM, the engine too.
    """
    size = 4 if subject.trl_weights == "float32" else 2
    known = training_mib(model, masters=False, moment_bytes=size)
    imports = assembled - known["weights"]
    if subject.work == "step" and subject.sampler == "transformers":
        known["KV cache"] = kv_cache_mib(model.config, subject.prompts * subject.siblings, positions, size)
    return account(peak_mib(), imports, known)


def prompts_of(task: SingleTurnTask, settings: TrlSettings) -> list[Prompt]:
    """Those of our run."""
    size = settings.prompts
    return [p for k in range(settings.rollouts) for p in train_prompts(task, settings.seed, MAIN, k * size, size)]


def replaying(subject: Subject) -> tuple[Callable[..., list[float]], dict[str, Any]]:
    """The recorded batch in place of sampling, through TRL's own hook for that."""
    batch = batch_of(subject)
    rewards = [r for siblings in batch.rewards for r in siblings]

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        assert len(prompts) == len(rewards)
        return {
            "prompt_ids": [list(p) for p, s in zip(batch.prompts, batch.responses, strict=True) for _ in s],
            "completion_ids": [list(ids) for siblings in batch.responses for ids in siblings],
            "logprobs": None,  # as with its own transformers generation
        }

    return lambda **_: rewards, {"rollout_func": rollout}


def step_numbers(seconds: dict[str, float]) -> dict[str, float]:
    """One rollout batch in our phases."""
    phases = {key: seconds.get(key, 0.0) for key in PHASES}
    return {
        "step_s": seconds["step"],
        **{f"{key}_s": value for key, value in phases.items()},
        "other_s": seconds["step"] - sum(phases.values()),
        "sampled_tokens": seconds["tokens"],
        "batch_tokens": seconds["tokens"],
        "tokens_per_s": seconds["tokens"] / seconds["step"],
    }
