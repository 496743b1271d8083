"""How a network computes: recomputed activations, compiled layers, low-rank adapters. None of it moves its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.core.errors import UsageError
from harness.core.routing import RouterSet
from harness.core.spec import BackendSpec, LoraSpec, UpdateSpec
from harness.models import attention
from harness.models.experts import set_experts
from harness.models.float_head import use_float32_head
from harness.models.shared_prompts import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def set_attention(policy: PreTrainedModel, name: str) -> None:
    """Chooses the attention implementation, in place."""
    if policy.config._attn_implementation == name:
        return
    try:
        policy.set_attn_implementation(name)
    except (ValueError, ImportError, KeyError) as error:
        raise UsageError(
            f"backend.attention = {name!r}",
            str(error).splitlines()[0],
            f"sdpa, eager, {attention.NAME}, or one that this model and machine support",
        ) from None


def set_up(policy: PreTrainedModel, backend: BackendSpec) -> None:
    """Attention, experts and output head of a policy or reference, in place."""
    set_attention(policy, backend.attention)
    set_experts(policy, backend.experts)
    if backend.fp32_head:
        use_float32_head(policy)


def prepare_decoder(model: nn.Module, update: UpdateSpec, routers: RouterSet | None = None) -> None:
    """Applies the choices about a decoder to a policy (with its routers), reference or value model, in place."""
    decoder = cast("PreTrainedModel", decoder_of(model))
    if update.checkpoint_activations:
        _checkpoint(decoder, update, routers)
    if update.compile:
        for layer in _layers(decoder):
            layer.compile(dynamic=True)


def _checkpoint(decoder: PreTrainedModel, update: UpdateSpec, routers: RouterSet | None) -> None:
    """Every layer keeps its input only and runs again in the backward pass.

    transformers does so in training mode alone; the layer's own flag is set, its children stay in evaluation mode, so
    that dropout stays off.
    """
    layers = _layers(decoder)
    known = hasattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache")
    if not decoder.supports_gradient_checkpointing or not layers or (update.share_prompts and not known):
        raise UsageError(
            "backend.update.checkpoint_activations = true",
            "this model has no layers that transformers can recompute"
            if known or not update.share_prompts
            else "this version of transformers drops the cache of a recomputed layer, which shared prompts need",
            "backend.update.checkpoint_activations=false"
            + ("" if known else ", or backend.update.share_prompts=false, or transformers 5.19"),
        )
    options = {} if routers is None else {"context_fn": routers.recompute}
    decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **options})
    for layer in layers:
        layer.training = True
        cast("Any", layer)._can_checkpoint_with_cache = True  # ours are never written twice


def _layers(decoder: nn.Module) -> list[nn.Module]:
    return [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]


def add_adapters(policy: PreTrainedModel, lora: LoraSpec) -> None:
    """Injects low-rank adapters W + alpha/rank B A (B starts at 0) and freezes everything else, in place.

    Source: LoRA (2106.09685), as in peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError(
            "recipe.lora", f"peft is not installed ({error})", "pip install peft, or no recipe.lora"
        ) from None
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),
        target_modules=_linear(policy) if targets == "all-linear" else targets,
    )
    try:
        inject_adapter_in_model(config, policy)
    except ValueError as error:
        raise UsageError(
            f"recipe.lora.targets = {targets!r}", str(error), "all-linear, or names of its modules"
        ) from None
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)


def _linear(policy: PreTrainedModel) -> list[str]:
    """Last names of the decoder's linear layers."""
    return sorted({n.rsplit(".", 1)[-1] for n, m in policy.get_decoder().named_modules() if isinstance(m, nn.Linear)})
