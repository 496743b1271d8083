"""Exact log-probs of response tokens without the logits that nobody reads.

The decoder runs once over right-padded rows (causal attention: no mask needed); the vocabulary head runs only where the
next token is a trained response token, in chunks whose logits are recomputed in the backward pass. So no tensor of
rows x positions x vocabulary exists, neither in the forward nor in the backward pass.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.core.shapes import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 1 << 24  # logits held at once: 64 MiB in float32
WHOLE = 1 << 62  # tokens: no chunks

_plain_head: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def token_logps(
    policy: nn.Module,
    input_ids: Int[Tensor, "B L"],
    select: Bool[Tensor, "B L"],
    *,
    temperature: float,
    with_entropy: bool = False,
    chunk_tokens: int | None = None,
    **decoder_inputs: Any,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]:
    """log pi(next token) and exact entropy (nats) at the selected positions, both differentiable, in row-major order.

    `select[b, t]` is True where token t+1 of row b is a trained response token; its last column must be False.
    logp = log_softmax(logits / temperature)[target] in float32. `chunk_tokens` defaults to what keeps a chunk within
    `CHUNK_LOGITS`; `decoder_inputs` (position_ids, attention_mask of a packed batch, ...) go to the model as they are.
    """
    model = cast("PreTrainedModel", policy)
    targets = input_ids[:, 1:][select[:, :-1]]
    if not has_plain_head(model):
        logits = model(input_ids=input_ids, use_cache=False, **decoder_inputs).logits[select]
        return _gather(logits, targets, temperature, with_entropy)
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False, **decoder_inputs).last_hidden_state
    return hidden_logps(
        model,
        hidden[select],
        targets,
        temperature=temperature,
        with_entropy=with_entropy,
        chunk_tokens=chunk_tokens,
    )


def hidden_logps(
    policy: nn.Module,
    hidden: Float[Tensor, "n H"],
    targets: Int[Tensor, "n"],
    *,
    temperature: float,
    with_entropy: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]:
    """The same from decoder outputs at the selected positions; only for models whose `has_plain_head` is true."""
    head = cast("PreTrainedModel", policy).get_output_embeddings()
    size = chunk_tokens or max(1, CHUNK_LOGITS // head.weight.shape[0])
    run = partial(_head_logps, head, temperature=temperature, with_entropy=with_entropy)
    if len(targets) <= size:
        return run(hidden, targets)
    parts = []
    for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(run, rows, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(run(rows, wanted))
    logp = torch.cat([part[0] for part in parts])
    return logp, torch.cat([part[1] for part in parts]) if with_entropy else None


def has_plain_head(policy: nn.Module) -> bool:
    """Whether decoder + output embedding give exactly the model's own logits (measured once per model).

    False for logit soft-capping, scaling and the like; those models take the path through all logits.
    """
    known = _plain_head.get(policy)
    if known is None:
        known = _plain_head[policy] = _measure_plain_head(cast("PreTrainedModel", policy))
    return known


@torch.no_grad()
def _measure_plain_head(policy: PreTrainedModel) -> bool:
    head = policy.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(1, 9, device=policy.device)[None] % policy.get_input_embeddings().weight.shape[0]
    hidden = policy.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    direct, full = head(hidden), policy(input_ids=ids, use_cache=False).logits
    # Same kernels on the same shapes: equal to the bit. A tolerance would let soft-capping of small logits pass.
    return direct.shape == full.shape and bool(torch.equal(direct.float(), full.float()))


def _head_logps(
    head: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    return _gather(head(hidden), targets, temperature, with_entropy)


def _gather(logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    logp = logits.log_softmax(-1)
    entropy = None
    if with_entropy:
        p = logp.exp()
        entropy = -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)  # an excluded token (-inf) contributes 0
    return logp.gather(-1, targets[:, None])[:, 0], entropy
