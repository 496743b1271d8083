"""A GRPOTrainer that writes down what it samples and in which order it trains on it. Importing it imports TRL."""

from __future__ import annotations

from typing import Any, final

import torch
from trl import GRPOTrainer

from harness.bench.recording import Rollout
from harness.bench.trl_grpo import Grader


@final
class Listener(GRPOTrainer):
    """Computes exactly what its base computes; `grader` is the reward function it was given."""

    def __init__(self, *args: Any, grader: Grader, **kwargs: Any) -> None:
        self._grader = grader
        self._sampled: list[dict[str, Any]] = []
        self._order: list[tuple[int, ...]] = []
        self.grad_norms: list[float] = []
        super().__init__(*args, **kwargs)

    def rollouts(self) -> list[Rollout]:
        """What was sampled so far."""
        per = len(self._order) // len(self._sampled)
        return [
            Rollout(**fields, mini_batches=tuple(self._order[k * per : (k + 1) * per]))
            for k, fields in enumerate(self._sampled)
        ]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        masks = output["completion_mask"].bool(), output["prompt_mask"].bool()
        old = output["old_per_token_logps"]
        self._sampled.append(
            {
                "prompt_ids": _rows(output["prompt_ids"], masks[1]),
                "response_ids": _rows(output["completion_ids"], masks[0]),
                "logp": _rows(old, masks[0]),
                "reward": tuple(grade.score for grade in self._grader.grades),
                "advantage": tuple(output["advantages"].tolist()),
            }
        )
        return {**output, "row": torch.arange(len(old))}  # shuffled and split with everything else

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._order.append(tuple(inputs["row"].tolist()))
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norms.append(float(found))
        return found


def _rows(values: torch.Tensor, mask: torch.Tensor) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(line[keep].tolist()) for line, keep in zip(values, mask, strict=True))
