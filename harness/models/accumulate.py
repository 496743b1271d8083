"""Embedding and vocabulary head whose backward passes add to `weight.grad` in place.

An ordinary backward pass makes a whole vocabulary-sized gradient for every piece of a batch and then adds it. These add
the piece's rows (embedding) or its product (head) directly. They are for `backward()` alone: `torch.autograd.grad` does
not see the weight's share.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from harness.core.shapes import Float, Int, Tensor
from harness.models.float_head import wide


def embed(layer: nn.Embedding, ids: Int[Tensor, "b T"]) -> Float[Tensor, "b T H"]:
    """layer(ids); the padding row, which an embedding may exclude, gets no gradient."""
    weight = layer.weight
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return cast("Tensor", layer(ids))
    run: Any = _Embed.apply
    out: Tensor = run(_anchor(weight), weight.detach(), ids, weight, layer.padding_idx)
    return out


def head_logps(
    head: nn.Linear,
    hidden: Float[Tensor, "n H"],
    targets: Int[Tensor, "n"],
    *,
    temperature: float,
    with_entropy: bool,
    chunk_tokens: int,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"] | None]:
    """log softmax(hidden W' / T)[target] and the entropy of that distribution in nats, float32.

    logp = z_target - Z, entropy = Z - sum_v p_v z_v with z = hidden W' / T, Z = logsumexp(z). Logits exist for
    `chunk_tokens` rows at a time and are computed again in the backward pass:
    dz = g (1[v = target] - p) - h p (z - Z + entropy) for gradients g, h of the two. Products are taken in the dtype of
    the hidden states, for a `Float32Head` in float32.
    """
    weight = head.weight
    trained = weight if torch.is_grad_enabled() and weight.requires_grad else None
    run: Any = _Head.apply
    logp, entropy = run(
        wide(head, hidden), weight.detach(), targets, trained, 1.0 / temperature, with_entropy, chunk_tokens
    )
    return logp, entropy if with_entropy else None


def _anchor(weight: Tensor) -> Tensor:
    """Something for autograd to hold on to: an input that needs a gradient although the weight is not one."""
    return torch.zeros((), dtype=weight.dtype, device=weight.device, requires_grad=True)


def _grad_of(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, values: Tensor, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.ids, ctx.weight, ctx.padding = ids, weight, padding
        return torch.nn.functional.embedding(ids, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        ids, grad = ctx.ids.flatten(), grads[0].flatten(0, -2)
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[:, None], 0.0)
        _grad_of(ctx.weight).index_add_(0, ids, grad)
        return (None,) * 5


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        values: Tensor,
        targets: Tensor,
        weight: Tensor | None,
        scale: float,
        with_entropy: bool,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        narrow, values = values, values.to(hidden.dtype)
        log_z = torch.empty(len(targets), device=hidden.device)
        logp, entropy = torch.empty_like(log_z), torch.zeros_like(log_z)
        for rows in _slices(len(targets), size):
            z = _logits(hidden[rows], values, scale)
            log_z[rows] = z.logsumexp(-1)
            logp[rows] = z.gather(-1, targets[rows, None])[:, 0] - log_z[rows]
            if with_entropy:
                p = (z - log_z[rows, None]).exp_()
                entropy[rows] = log_z[rows] - torch.where(p > 0, p * z, 0.0).sum(-1)  # an excluded token adds 0
        ctx.save_for_backward(hidden, narrow, targets, log_z, entropy)
        ctx.weight, ctx.scale, ctx.with_entropy, ctx.size = weight, scale, with_entropy, size
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, narrow, targets, log_z, entropy = ctx.saved_tensors
        values = narrow.to(hidden.dtype)
        grad_logp, grad_entropy = grads
        grad_hidden = torch.empty_like(hidden)
        for rows in _slices(len(targets), ctx.size):
            z = _logits(hidden[rows], values, ctx.scale).sub_(log_z[rows, None])  # log p
            dz = z.exp()
            if ctx.with_entropy:
                slope = torch.where(dz > 0, z, 0.0).add_(entropy[rows, None]).mul_(grad_entropy[rows, None])
                dz.mul_(slope.add_(grad_logp[rows, None]).neg_())
            else:
                dz.mul_(-grad_logp[rows, None])
            dz.scatter_add_(-1, targets[rows, None], grad_logp[rows, None])
            dz = dz.mul_(ctx.scale).to(hidden.dtype)
            grad_hidden[rows] = dz @ values
            if ctx.weight is not None:
                _add_product(_grad_of(ctx.weight), dz.t(), hidden[rows])
        return (grad_hidden, *(None,) * 6)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right; a product of a higher precision is rounded once, when it is added."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _logits(hidden: Tensor, values: Tensor, scale: float) -> Tensor:
    z = (hidden @ values.t()).float()
    return z if scale == 1.0 else z.mul_(scale)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]
