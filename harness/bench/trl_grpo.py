"""TRL's GRPOTrainer on our tasks, with every setting that touches numbers spelled out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.ports import SingleTurnTask
from harness.core.spec import Dtype, Recipe
from harness.core.types import Grade, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer

VLLM_LENGTH = 1024  # tokens of prompt and response that its KV cache is laid out for
ADAM_EPS = 1e-8  # of torch's AdamW, which our optimizer leaves alone


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlSettings:
    """What a TRL run shares with ours, under our names."""

    prompts: int  # per rollout batch
    siblings: int
    mini_batches: int  # optimizer steps per rollout batch
    accumulation: int = 1  # micro-batches per optimizer step
    rollouts: int  # rollout batches
    max_new_tokens: int
    temperature: float = 1.0
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    clip: float = 0.2
    seed: int = 0
    bf16: bool = False  # autocast, by default over float32 weights
    weights: Dtype = "float32"  # as loaded and as AdamW sees them, where the model is given as a folder
    gradient_checkpointing: bool = False
    vllm: bool = False
    pad_to_multiple_of: int | None = None  # padded positions; changes rounding alone

    @classmethod
    def of(cls, recipe: Recipe, *, siblings: int, mini_batches: int, rollouts: int, **others: Any) -> TrlSettings:
        """The settings that equal a recipe of ours."""
        if (recipe.lr_schedule, recipe.warmup) != ("constant", 0.0):
            raise UsageError(
                f"recipe with lr_schedule={recipe.lr_schedule!r}, warmup={recipe.warmup:g}",
                "a comparison with TRL runs at a constant learning rate",
                "lr_schedule: constant, warmup: 0",
            )
        return cls(
            prompts=recipe.prompts_per_step,
            siblings=siblings,
            mini_batches=mini_batches,
            rollouts=rollouts,
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            grad_clip=recipe.grad_clip,
            **others,
        )

    @property
    def rows(self) -> int:
        """Responses of a rollout batch."""
        return self.prompts * self.siblings

    def config(self, folder: str, *, from_folder: bool) -> GRPOConfig:
        """TRL's own settings; `folder` is where it may write, `from_folder` whether it loads the model itself."""
        parts = self.mini_batches * self.accumulation
        if self.rows % parts or self.rows // parts < 1:
            raise UsageError(
                f"{self.rows} responses in {parts} micro-batches", "TRL needs parts of one size", "a divisor of it"
            )
        from trl import GRPOConfig

        return GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            seed=self.seed,
            # the rollout batch and its use
            per_device_train_batch_size=self.rows // parts,
            gradient_accumulation_steps=self.accumulation,
            steps_per_generation=parts,
            num_generations=self.siblings,
            num_iterations=1,
            max_steps=self.mini_batches * self.rollouts,
            shuffle_dataset=False,
            dataloader_num_workers=0,
            # sampling
            max_completion_length=self.max_new_tokens,
            temperature=self.temperature,
            top_p=1.0,
            top_k=0,
            min_p=None,
            repetition_penalty=1.0,
            use_vllm=self.vllm,
            vllm_mode="colocate",
            vllm_max_model_length=VLLM_LENGTH if self.vllm else None,
            vllm_importance_sampling_correction=False,
            # the loss
            loss_type="grpo",
            scale_rewards="group",
            importance_sampling_level="token",
            epsilon=self.clip,
            epsilon_high=self.clip,
            delta=None,
            beta=0.0,
            mask_truncated_completions=False,
            top_entropy_quantile=1.0,
            entropy_coef=0.0,
            disable_dropout=True,
            # the optimizer
            optim="adamw_torch_fused",
            learning_rate=self.lr,
            adam_beta1=self.betas[0],
            adam_beta2=self.betas[1],
            adam_epsilon=ADAM_EPS,
            weight_decay=self.weight_decay,
            max_grad_norm=self.grad_clip,
            lr_scheduler_type="constant",
            warmup_steps=0,
            # precision and memory
            bf16=self.bf16,
            fp16=False,
            tf32=None,
            model_init_kwargs={"dtype": self.weights} if from_folder else None,
            gradient_checkpointing=self.gradient_checkpointing,
            pad_to_multiple_of=self.pad_to_multiple_of,
            # nothing but training
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Grader:
    """TRL's reward function out of a task of ours; remembers the grades of the newest rollout batch, in row order."""

    __name__ = "task"

    def __init__(self, task: SingleTurnTask, prompts: Sequence[Prompt], eos_ids: Sequence[int]) -> None:
        self._task, self._prompts, self._eos = task, prompts, frozenset(eos_ids)
        self.grades: list[Grade] = []
        self.chosen: list[Prompt] = []

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], index: Sequence[int], **_: Any
    ) -> list[float]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        self.chosen = [self._prompts[i] for i in index]
        self.grades = [
            self._task.grade(prompt, text, "stop" if ids and ids[-1] in self._eos else "length")
            for prompt, text, ids in zip(self.chosen, texts, completion_ids, strict=True)
        ]
        return [grade.score for grade in self.grades]


def quiet() -> None:
    """Keeps TRL from the network and from talking; call it before TRL is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def build_trainer(
    settings: TrlSettings,
    *,
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    reward: Callable[..., list[float]],
    folder: str,
    chat: bool,
    kind: type[GRPOTrainer] | None = None,
    **others: Any,
) -> GRPOTrainer:
    """A trainer over `prompts` in their order; `kind` may be a subclass that listens, `others` go to it as they are."""
    quiet()
    from datasets import Dataset
    from trl import GRPOTrainer

    if len(prompts) < settings.prompts * settings.rollouts:
        raise UsageError(
            f"{len(prompts)} prompts for {settings.rollouts} rollout batches of {settings.prompts}",
            "TRL would begin again at the first prompt",
            f"{settings.prompts * settings.rollouts} prompts",
        )
    shown = [[dict(m) for m in p.messages] if chat else p.messages[-1]["content"] for p in prompts]
    return (kind or GRPOTrainer)(
        model=model,
        args=settings.config(folder, from_folder=isinstance(model, str)),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": shown, "index": list(range(len(prompts)))}),
        processing_class=tokenizer,
        **others,
    )
