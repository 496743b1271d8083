"""A policy as an engine reads it: checkpoint names, adapters merged, tied tensors once, heads of a size it has.

The engine's folder holds the configuration and the tokenizer only. Weights always come from the trainer, at the start
and after every update alike, so that there is one way in and a self-test of it covers all of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.core.errors import UsageError
from harness.core.shapes import Float, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NARROWEST_ON_CPU = 32  # the smallest head its attention kernels have; vllm/v1/attention/backends/cpu_attn.py, 0.32
WIDENED = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")  # their attention is the same


def head_size(policy: PreTrainedModel) -> int:
    """Size of an attention head."""
    config = policy.config.get_text_config()
    found = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(found)


def head_sizes(policy: PreTrainedModel) -> frozenset[int]:
    """Head sizes that the policy's weights can be given: its own, and the one it can be widened to."""
    size = head_size(policy)
    wide = (
        type(policy).__name__ in WIDENED and size < NARROWEST_ON_CPU and size % 2 == 0 and NARROWEST_ON_CPU % size == 0
    )
    return frozenset({size, NARROWEST_ON_CPU}) if wide else frozenset({size})


def engine_head_size(policy: PreTrainedModel, device: str) -> int:
    """Head size under which an engine on `device` can run the policy; UsageError where it has no such kernel."""
    size = head_size(policy)
    if device != "cpu" or size >= NARROWEST_ON_CPU:
        return size
    if NARROWEST_ON_CPU not in head_sizes(policy):
        raise UsageError(
            f"sampler vllm with {type(policy).__name__} of head size {size}",
            f"its attention on CPU needs heads of {NARROWEST_ON_CPU} or more",
            "--sampler transformers",
        )
    return NARROWEST_ON_CPU


def write_folder(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, head: int) -> None:
    """Configuration and tokenizer of the policy; no weights."""
    config = copy.deepcopy(policy.config)
    config.architectures = [type(policy).__name__]
    if head != head_size(policy):
        config.head_dim = head
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def named_tensors(policy: PreTrainedModel, head: int) -> dict[str, Tensor]:
    """The weights under the names of a checkpoint; views of the policy's own where nothing has to be changed."""
    from transformers.core_model_loading import revert_weight_conversion

    with torch.no_grad():
        own = {name: t.detach() for name, t in _untied(_merged(policy)).items()}
        tensors: dict[str, Tensor] = revert_weight_conversion(policy, own)
        if head == head_size(policy):
            return tensors
        wide = Widened(old=head_size(policy), new=head)
        return {name: wide(name, tensor) for name, tensor in tensors.items()}


def _merged(policy: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict with every low-rank adapter (as peft injects them) added to the weight it belongs to."""
    state: dict[str, Tensor] = policy.state_dict()
    for name, module in policy.named_modules():
        if not (hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")):
            continue
        own: Any = module
        inside = {key: t for key, t in state.items() if key.startswith(f"{name}.")}
        for key in inside:
            del state[key]
        for key, tensor in own.base_layer.state_dict().items():
            state[f"{name}.{key}"] = tensor
        for adapter in own.active_adapters:
            state[f"{name}.weight"] = state[f"{name}.weight"] + own.get_delta_weight(adapter).to(own.base_layer.weight)
    return state


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name: a tied head is left out."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in seen or tensor.numel() == 0:
            kept[name] = tensor
        seen.add(key)
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Widened:
    """The same Qwen3 with heads of `new` instead of `old` dimensions, the added ones zero.

    Rotary dimension i of the old head turns with frequency theta^(-2i/old) and is paired with i + old/2. Its slot in
    the new head is i new/old, which turns equally fast and is paired with the slot of i + old/2. Queries and keys are
    normalised over the head: RMS over `new` dimensions, of which only `old` count, is sqrt(old/new) of what it was, and
    scores are divided by sqrt(new) instead of sqrt(old), so the weights of both norms are scaled by (old/new)^(1/4).
    Equal but for rounding and the norm's epsilon, which counts new/old times as much as before.
    """

    old: int
    new: int

    def slots(self) -> Tensor:
        """Where each old dimension goes, `[old]`."""
        half = torch.arange(self.old // 2) * (self.new // self.old)
        return torch.cat([half, half + self.new // 2])

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """One named weight of the narrow model -> the same of the wide one."""
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if part in ("q_proj", "k_proj", "v_proj"):
            return self.rows(tensor)
        if part == "o_proj":
            return self.rows(tensor.T).T.contiguous()
        if part in ("q_norm", "k_norm"):
            return self.rows(tensor[:, None])[:, 0] * math.sqrt(math.sqrt(self.old / self.new))
        return tensor

    def rows(self, tensor: Float[Tensor, "rows columns"]) -> Float[Tensor, "wide columns"]:
        """Spreads the rows of every head over its new dimensions."""
        num_heads = tensor.shape[0] // self.old
        wide = tensor.new_zeros(num_heads, self.new, tensor.shape[1])
        wide[:, self.slots().to(tensor.device)] = tensor.reshape(num_heads, self.old, -1)
        return wide.reshape(num_heads * self.new, -1)
