"""Routers of a mixture of experts: what they choose is recorded, and a recorded choice is replayed.

Every router of a model gets a forward hook. Under a `Pass` it hands over which experts each token chose; a pass with
its own gates computes them with `harness.core.routing.gates` from the live logits, so that the router keeps
receiving gradient, through the replayed experts alone. Without a pass the model is as it was, bit by bit.

A router class is known by what it returns, (logits [N, E], gates [N, k], experts [N, k]), as in transformers, and its
gates are understood by trying: whichever rule gives the router's own numbers. Others are registered in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from harness.core.errors import UsageError
from harness.core.routing import Chosen, Pass, Score, gates
from harness.core.shapes import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 64
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # relative; rules differ by far more
SIZES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # config fields of such models


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How chosen logits become gates."""

    score: Score
    normalise: bool = True  # sigmoid only: divide by the sum
    scale: float | None = None


RULES: dict[str, Rule] = {}
"""Rules by the class name of a router, for those whose gates no trial explains."""


class Routers:
    """The routers of a policy, in layer order."""

    def __init__(self, policy: nn.Module) -> None:
        self._modules = _routers(policy)
        if not self._modules:
            raise _no_router(policy)
        shapes = {(found.num_experts, found.top_k) for found in self._modules}
        if len(shapes) > 1:
            raise UsageError(
                f"a model whose layers route to {sorted(shapes)} (experts, k)",
                "routes are kept as one block of tokens x layers x k",
                "a model whose routers are alike, or routing_replay=off",
            )
        self.num_experts, self.top_k = shapes.pop()
        self.num_layers = len(self._modules)
        self._pass: Pass | None = None
        for layer, found in enumerate(self._modules):
            found.module.register_forward_hook(self._hook(layer, found.rule))

    @contextmanager
    def under(self, this: Pass | None) -> Iterator[None]:
        """Forwards inside follow `this`."""
        before, self._pass = self._pass, this
        try:
            yield
        finally:
            self._pass = before

    def recompute(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For activation checkpointing: a layer that runs again takes the routes that it took first."""
        return nullcontext(), self.under(None if self._pass is None else self._pass.again())

    def _hook(self, layer: int, rule: Rule | None) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            current = self._pass
            if current is None:
                return None
            logits, weights, chosen = output
            experts = current.route(Chosen(layer=layer, logits=logits, experts=chosen))
            if not current.own_gates:
                return None
            if rule is None:
                raise _unknown(module)
            found = gates(logits, experts, rule.score, normalise=rule.normalise, scale=rule.scale)
            return logits, found.to(weights.dtype), experts

        return hook


@dataclass(frozen=True, slots=True, kw_only=True)
class _Router:
    module: nn.Module
    num_experts: int
    top_k: int
    rule: Rule | None  # None: not understood


def is_moe(policy: nn.Module) -> bool:
    """Whether the config speaks of more than one expert."""
    config = cast("PreTrainedModel", policy).config.get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in SIZES)


def routers_of(policy: nn.Module, *, needed: bool = False) -> Routers | None:
    """The routers of a mixture of experts, hooked; None for a dense model, and where none is known and none `needed`.

    UsageError where they are needed and missing.
    """
    if needed and not is_moe(policy):
        raise UsageError(
            f"routing replay with a model of class {type(policy).__name__}",
            "it is dense: no router chooses anything that could be replayed",
            "routing_replay=off, or a mixture of experts (e.g. --model tiny-moe)",
        )
    return Routers(policy) if is_moe(policy) and (needed or _routers(policy)) else None


@torch.no_grad()
def _routers(policy: nn.Module) -> list[_Router]:
    decoder = cast("PreTrainedModel", policy).get_decoder()
    candidates = [m for m in decoder.modules() if type(m).__name__.lower().endswith(("router", "gate"))]
    return [found for m in candidates if (found := _tried(m)) is not None]


def _tried(module: nn.Module) -> _Router | None:
    """What a router makes of random tokens; None for a module that is no top-k router."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(PROBE_TOKENS, weight.shape[1], generator=generator).to(weight)
    try:
        output = module(tokens)
    except Exception:  # some other module of that name, with arguments of its own
        return None
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(x, Tensor) for x in output)):
        return None
    logits, found, experts = output
    if experts.dtype not in (torch.int64, torch.int32) or experts.shape != found.shape or logits.shape[0] != len(found):
        return None
    rule = RULES.get(type(module).__name__) or _fitting(module, logits, found, experts)
    return _Router(module=module, num_experts=logits.shape[1], top_k=experts.shape[1], rule=rule)


def _fitting(module: nn.Module, logits: Tensor, found: Tensor, experts: Tensor) -> Rule | None:
    """The rule that gives the router's own gates."""
    scales = dict.fromkeys((None, getattr(module, "routed_scaling_factor", None)))
    scores: tuple[tuple[Score, bool], ...] = (
        ("softmax_post", True), ("softmax_pre", True), ("sigmoid", True), ("sigmoid", False),
    )  # fmt: skip
    for (score, normalise), scale in product(scores, scales):
        ours = gates(logits, experts, score, normalise=normalise, scale=scale).to(found.dtype)
        if torch.allclose(ours, found, rtol=CLOSE.get(found.dtype, 1e-5), atol=1e-6):
            return Rule(score=score, normalise=normalise, scale=scale)
    return None


def _unknown(module: nn.Module) -> UsageError:
    name = type(module).__name__
    return UsageError(
        f"routing replay with a router of class {name}",
        "its gates are none of softmax over all logits, softmax over the chosen ones, or sigmoid",
        f"harness.models.routers.RULES[{name!r}] = Rule(score=...), or routing_replay=off",
    )


def _no_router(policy: nn.Module) -> UsageError:
    names = sorted({type(m).__name__ for m in policy.modules() if "rout" in type(m).__name__.lower()
                    or type(m).__name__.lower().endswith(("gate", "gating"))})  # fmt: skip
    return UsageError(
        f"routing replay with a model of class {type(policy).__name__}",
        "its config names experts, but none of its modules returns (logits, gates, experts) as a router does"
        + (f"; not {', '.join(names)}" if names else ""),
        "routing_replay=off, or a mixture of experts whose routers do (Qwen3-MoE, OLMoE, Mixtral, DeepSeek-V3, ...)",
    )
