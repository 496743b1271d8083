"""A GRPOTrainer with a stopwatch. Importing it imports TRL."""

from __future__ import annotations

import time
from typing import Any, final

from transformers import TrainerCallback
from trl import GRPOTrainer

from harness.bench.stopwatch import Stopwatch


@final
class Timed(GRPOTrainer):
    """Computes exactly what its base computes; `steps` has one entry of seconds by phase per rollout batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.watch = Stopwatch()
        self.steps: list[dict[str, float]] = []
        self.sampled_tokens = 0
        self.prompt_ids: list[Any] = []  # of the first rollout batch
        super().__init__(*args, **kwargs)
        self.add_callback(_Clock(self))
        self.accelerator.backward = self.watch.around("backward", self.accelerator.backward)
        if self.use_vllm:
            engine = self.vllm_generation
            engine.sync_weights = self.watch.around("sync", engine.sync_weights)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._generate(*args, **kwargs)
        self.sampled_tokens = sum(len(ids) for ids in output[1])
        self.prompt_ids = self.prompt_ids or output[0]
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch.around("generation", super()._generate_single_turn)(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch.around("forward", super()._get_per_token_logps_and_entropies)(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch.around("forward", super().compute_loss)(*args, **kwargs)

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch.around("optimizer", super()._clip_grad_norm)(*args, **kwargs)


class _Clock(TrainerCallback):
    """Where optimizer steps and rollout batches begin and end."""

    def __init__(self, trainer: Timed) -> None:
        self._trainer = trainer
        self._since = self._optimizer = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._since = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._optimizer = self._trainer.watch.enter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.watch.leave("optimizer", self._optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        per_rollout = args.steps_per_generation // args.gradient_accumulation_steps
        if state.global_step % per_rollout == 0:
            now, trainer = time.perf_counter(), self._trainer
            tokens = float(trainer.sampled_tokens)
            trainer.steps.append({"step": now - self._since, "tokens": tokens, **trainer.watch.seconds})
            trainer.watch.reset()
            self._since = now
