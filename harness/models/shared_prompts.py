"""One forward per prompt for all of its siblings, exactly.

The prompts run once and leave keys, values and last states behind; the responses then run in pieces that attend to
them. In the backward pass every piece adds its gradient at those tensors, and one backward through the prompts ends it.
A prompt is therefore never run twice, however the rows of its group are spread over pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from harness.core.errors import UsageError
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.models.accumulate import embed, head_logps
from harness.models.float_head import is_linear_head
from harness.models.response_logits import CHUNK_LOGITS, has_plain_head, hidden_logps, token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.5,
    torch.float16: 0.1,
}  # nats; a wrong mask or position is off by far more

_can_share: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class PromptStates:
    """The prompts of some rows after their forward: what the responses' forwards start from."""

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, *, chunk_tokens: int | None = None
    ) -> None:
        self._model, self._decoder, self._chunk_tokens = model, decoder_of(model), chunk_tokens
        self._embedding: nn.Module = cast("PreTrainedModel", self._decoder).get_input_embeddings()
        device = next(model.parameters()).device
        self._lengths = torch.tensor([len(p) for p in prompts], device=device)
        width = int(self._lengths.max())
        ids = torch.tensor([[*p, *(pad_id,) * (width - len(p))] for p in prompts], device=device)
        self._real = torch.arange(width, device=device) < self._lengths[:, None]
        cache = Cache(layers=[_RecordedLayer() for _ in range(_config(model).num_hidden_layers)])
        hidden = self._decoder(inputs_embeds=self._embed(ids), past_key_values=cache, use_cache=True).last_hidden_state
        # Padding is on the right: causal attention keeps it away from the prompt, the mask from the response.
        last = hidden[torch.arange(len(prompts), device=device), self._lengths - 1]
        self._roots: list[Tensor] = [last, *(t for layer in cache.layers for t in (layer.keys, layer.values))]
        self._leaves = [root.detach().requires_grad_(root.requires_grad) for root in self._roots]

    def logps(
        self,
        prompt: Int[Tensor, "b"],
        response_ids: Int[Tensor, "b T"],
        mask: Bool[Tensor, "b T"],
        *,
        temperature: float,
        with_entropy: bool = False,
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]:
        """log pi and exact entropy of the tokens under `mask`, flat in row-major order; `prompt` names each row's."""
        hidden, targets = self._states(prompt, response_ids)[mask], response_ids[mask]
        head: nn.Module = cast("PreTrainedModel", self._model).get_output_embeddings()
        size = self._chunk_tokens or max(1, CHUNK_LOGITS // cast("Tensor", head.weight).shape[0])
        options: dict[str, Any] = {"temperature": temperature, "with_entropy": with_entropy, "chunk_tokens": size}
        if is_linear_head(head):
            return head_logps(cast("nn.Linear", head), hidden, targets, **options)
        return hidden_logps(self._model, hidden, targets, **options)

    def values(
        self, prompt: Int[Tensor, "b"], response_ids: Int[Tensor, "b T"], mask: Bool[Tensor, "b T"]
    ) -> Float[Tensor, "n"]:
        """V of the states before the tokens under `mask`, flat in row-major order, float32; for a value model."""
        head = cast("nn.Module", self._model.head)
        values: Tensor = head(self._states(prompt, response_ids)[mask].float())
        return values[..., 0]

    def backward(self) -> None:
        """Carries the gradient that the pieces left at the prompts' states into the weights."""
        pairs = [(r, leaf.grad) for r, leaf in zip(self._roots, self._leaves, strict=True) if leaf.grad is not None]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])
        self._roots, self._leaves = [], []

    def _embed(self, ids: Int[Tensor, "b T"]) -> Float[Tensor, "b T H"]:
        layer = self._embedding
        return embed(layer, ids) if type(layer) is nn.Embedding else layer(ids)

    def _states(self, prompt: Int[Tensor, "b"], response_ids: Int[Tensor, "b T"]) -> Float[Tensor, "b T H"]:
        """Decoder states from which each response token is predicted: the prompt's last one, then the response's."""
        last, *kv = (leaf.index_select(0, prompt) for leaf in self._leaves)
        fed = response_ids[:, :-1]
        if not fed.shape[1]:
            return last[:, None]
        position = self._lengths[prompt][:, None] + torch.arange(fed.shape[1], device=fed.device)
        hidden = self._decoder(
            inputs_embeds=self._embed(fed),
            position_ids=position,
            attention_mask=torch.cat([self._real[prompt], torch.ones_like(fed, dtype=torch.bool)], dim=1),
            past_key_values=Cache(layers=[_PrefixLayer(k, v) for k, v in zip(kv[::2], kv[1::2], strict=True)]),
            use_cache=True,
        ).last_hidden_state
        return torch.cat([last[:, None], hidden], dim=1)


class _RecordedLayer(DynamicLayer):
    """Keeps the first keys and values; a layer that runs again, to recompute its activations, changes nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        return key_states, value_states


class _PrefixLayer(DynamicLayer):
    """Keys and values of the prompts; what is appended is returned and never stored, for the same reason."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def decoder_of(model: nn.Module) -> nn.Module:
    """The decoder of a policy or of a value model."""
    own = getattr(model, "decoder", None)
    return own if isinstance(own, nn.Module) else cast("nn.Module", cast("PreTrainedModel", model).get_decoder())


def _config(model: nn.Module) -> Any:
    return cast("PreTrainedModel", decoder_of(model)).config.get_text_config()


def can_share(policy: nn.Module, pad_id: int) -> bool:
    """Whether sharing gives this model's own log-probs (measured once per model).

    False for sliding windows and recurrent layers, whose state after a padded prompt is not the prompt's, and for
    models whose logits are more than decoder and output embedding.
    """
    known = _can_share.get(policy)
    if known is None:
        known = _can_share[policy] = _measure(cast("PreTrainedModel", policy), pad_id)
    return known


def require_sharing(policy: nn.Module, pad_id: int, name: str) -> None:
    """UsageError where prompts cannot be shared."""
    if not can_share(policy, pad_id):
        raise UsageError(
            f"backend.update.share_prompts = true for the model {name}",
            "its layers keep more than keys and values of every token, or its logits are scaled after the head",
            "backend.update.share_prompts=false",
        )


@torch.no_grad()
def _measure(policy: PreTrainedModel, pad_id: int) -> bool:
    if not has_plain_head(policy):
        return False
    layers = DynamicCache(config=_config(policy)).layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        return False
    vocabulary = policy.get_input_embeddings().weight.shape[0]
    prompts = [[(7 * i + 1) % vocabulary for i in range(n)] for n in (3, 5)]
    responses = torch.tensor([[(5 * i + 2) % vocabulary for i in range(4)]] * 2, device=policy.device)
    mask = torch.ones_like(responses, dtype=torch.bool)
    index = torch.arange(2, device=policy.device)
    shared, _ = PromptStates(policy, prompts, pad_id).logps(index, responses, mask, temperature=1.0)
    for row, prompt in enumerate(prompts):
        ids = torch.cat([torch.tensor(prompt, device=policy.device), responses[row]])[None]
        select = torch.zeros_like(ids, dtype=torch.bool)
        select[0, len(prompt) - 1 : -1] = True
        plain, _ = token_logps(policy, ids, select, temperature=1.0)
        if float((plain - shared[4 * row : 4 * row + 4]).abs().max()) > TOLERANCE[policy.dtype]:
            return False
    return True
