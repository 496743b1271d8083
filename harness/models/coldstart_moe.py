"""Cold starts of `tiny-moe` and `tiny-moe-32`: those of `tiny`, shipped in bfloat16 and measured after the rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.core.routing import Chosen
from harness.models.coldstart import make_batch, train
from harness.models.routers import Routers
from harness.models.tiny import PAD_ID, tiny_tokenizer
from harness.models.tiny_moe import COLDSTARTS, coldstart_family, tiny_moe_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def moe_lessons() -> dict[str, Callable[[], tuple[PreTrainedModel, dict[str, Any]]]]:
    """How each of them is made, by its name."""
    return {
        f"{coldstart_family(name, layers)}-{seed}": partial(train_moe, name, layers, seed)
        for name, shipped in COLDSTARTS.items()
        for layers, count in shipped.items()
        for seed in range(count)
    }


def train_moe(name: str, layers: int, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """One cold start, with the load of its experts."""
    model, facts = train(seed, tiny_moe_model(name, layers, seed), torch.bfloat16)
    return model, {**facts, "load": loads(model)}


@torch.no_grad()
def loads(model: PreTrainedModel) -> list[tuple[float, float]]:
    """Per layer the smallest and the largest load of an expert on answers of `chain`; 1 is an even share."""
    from tasks.chain import build

    ids, _ = make_batch(build(credit=False), tiny_tokenizer(), 1 << 42, torch.Generator().manual_seed(0))
    routers, seen = Routers(model), _Choices()
    with routers.under(seen):
        model(input_ids=ids)
    real, experts = (ids != PAD_ID).reshape(-1), routers.num_experts
    shares = [torch.bincount(c[real].reshape(-1), minlength=experts) * experts / c[real].numel() for c in seen.layers]
    return [(round(float(s.min()), 3), round(float(s.max()), 3)) for s in shares]


class _Choices:
    """A pass that takes note of what each layer chose."""

    own_gates = False

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def route(self, chosen: Chosen) -> Tensor:
        self.layers.append(chosen.experts)
        return chosen.experts

    def again(self) -> None:
        return None
