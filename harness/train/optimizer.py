"""AdamW with fp32 master weights where the model is of lower precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from harness.core.shapes import Tensor
from harness.core.spec import Recipe

# Below 6e-8 float16 is 0. Measured on SmolLM2-135M: at a scale of 1 a twentieth of the gradient's elements is lost and
# it is wrong by 2.6 % (at the gradient norms of larger batches by 100 times that), at 256 and 4096 by .8 %.
FIRST_SCALE, LARGEST_SCALE, RAISE_EVERY = 2.0**12, 2.0**16, 100
MEASURE_UPDATE_BELOW = 50_000_000  # parameters; beyond, the copy that measures ||step|| would cost real memory


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStep:
    """What one step did."""

    grad_norm: float  # before clipping
    clipped: bool
    finite: bool  # False: nothing was changed
    overflow: bool = False  # the loss scale was too large and has been halved: the same backward passes are due again


class Optimizer:
    """Clip-norm, then AdamW on fp32 masters, then copy back into the model.

    Losses are to be multiplied by `scale` before their backward pass; `step` divides the gradients by it. It is 1 but
    for float16 weights, whose gradients would be rounded to 0: there a power of two, halved when a gradient overflows
    and doubled after every so many steps.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, lr: float) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self._params = [p for _, p in named]
        self._masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self._params]
        self._adamw = torch.optim.AdamW(
            self._masters, lr=lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self._clip = recipe.grad_clip
        self._measure = sum(p.numel() for p in self._params) < MEASURE_UPDATE_BELOW
        self._mark: list[Tensor] = []
        self._steps = 0
        self.scale = FIRST_SCALE if any(p.dtype == torch.float16 for p in self._params) else 1.0

    def zero_grad(self) -> None:
        for p in self._params:
            p.grad = None

    def step(self, lr: float, *, finite: bool = True) -> OptimizerStep:
        """One update; a non-finite gradient, or `finite=False`, changes nothing and is reported."""
        grads = [torch.zeros_like(m) if p.grad is None else p.grad.float() for p, m in self._pairs()]
        if self.scale != 1.0:
            grads = [g / self.scale for g in grads]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if finite and not math.isfinite(norm) and self.scale > 1.0:
            self.scale /= 2
            return OptimizerStep(grad_norm=norm, clipped=False, finite=False, overflow=True)
        if not finite or not math.isfinite(norm):
            return OptimizerStep(grad_norm=norm, clipped=False, finite=False)
        scale = min(1.0, self._clip / (norm + 1e-6))
        for (_, master), grad in zip(self._pairs(), grads, strict=True):
            master.grad = grad * scale if scale < 1.0 else grad
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._raise_scale()
        for p, master in self._pairs():
            if p is not master:
                p.data.copy_(master.data)
        return OptimizerStep(grad_norm=norm, clipped=scale < 1.0, finite=True)

    def _raise_scale(self) -> None:
        if any(p.dtype == torch.float16 for p in self._params):
            self._steps += 1
            if self._steps % RAISE_EVERY == 0:
                self.scale = min(2 * self.scale, LARGEST_SCALE)

    def mark(self) -> None:
        """Remembers the weights, for `moved`."""
        self._mark = [m.detach().clone() for m in self._masters] if self._measure else []

    def moved(self) -> tuple[float, float] | None:
        """(||theta - marked||, ||marked||); None where the model is too large to keep a copy."""
        if not self._mark:
            return None
        change = [m.detach() - old for m, old in zip(self._masters, self._mark, strict=True)]
        return float(torch.nn.utils.get_total_norm(change)), float(torch.nn.utils.get_total_norm(self._mark))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._params, self._masters, strict=True))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name."""
        return {name: tuple(master.shape) for name, master in zip(self.names, self._masters, strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments by name, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for name, master in zip(self.names, self._masters, strict=True):
            found[f"weight.{name}"] = master.detach()
            for key, value in self._adamw.state.get(master, {}).items():
                found[f"{key}.{name}"] = value.detach() if torch.is_tensor(value) else torch.tensor(value)
        if any(p.dtype == torch.float16 for p in self._params):
            found["loss_scale"] = torch.tensor([self.scale, self._steps], dtype=torch.float64)
        return found

    def load(self, tensors: Mapping[str, Tensor], *, moments: bool = True) -> None:
        """Restores `tensors()`; without `moments` only the weights."""
        if moments and "loss_scale" in tensors and any(p.dtype == torch.float16 for p in self._params):
            self.scale, self._steps = float(tensors["loss_scale"][0]), int(tensors["loss_scale"][1])
        for name, p, master in zip(self.names, self._params, self._masters, strict=True):
            master.data.copy_(tensors[f"weight.{name}"])
            if p is not master:
                p.data.copy_(master.data)
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}.{name}" in tensors]
            if moments and keys:
                self._adamw.state[master] = {
                    k: tensors[f"{k}.{name}"]
                    .clone()
                    .to(torch.float32 if k == "step" else master.dtype)
                    .to(master.device)
                    for k in keys
                }
            elif master in self._adamw.state:
                del self._adamw.state[master]


def learning_rate(recipe: Recipe, base: float, fraction: float) -> float:
    """Rate at a fraction of the budget: linear warm-up, then constant, linear or cosine decay to 0."""
    if fraction < recipe.warmup:
        return base * fraction / recipe.warmup
    left = (fraction - recipe.warmup) / max(1e-9, 1 - recipe.warmup)
    shape = {"constant": 1.0, "linear": 1 - left, "cosine": 0.5 * (1 + math.cos(math.pi * left))}
    return base * shape[recipe.lr_schedule]
