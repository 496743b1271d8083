"""One token per row by inverting the CDF at a given uniform, with its log-prob and the entropy of the row."""

from __future__ import annotations

from typing import NamedTuple

import torch

from harness.core.shapes import Float, Int, Tensor

ONE_PASS = 4096  # up to this vocabulary whole rows are softmaxed and summed at once
BLOCK = 512  # tokens of a larger vocabulary whose probabilities are summed before the draw looks at single ones
CHUNK = {"cpu": 2**19, "cuda": 2**26}  # numbers worked on at once: what a processor's cache holds, what memory affords
FLOOR = -200.0  # exp of it is 0 in float32; keeps 0 * -inf out of the entropy


class Drawn(NamedTuple):
    """One draw per row; log-probs and entropies in nats, float32."""

    token: Int[Tensor, "R"]
    logp: Float[Tensor, "R"]
    entropy: Float[Tensor, "R"]


def draw(logits: Float[Tensor, "R V"], u: Float[Tensor, "R"], temperature: float) -> Drawn:
    """Tokens of softmax(logits / temperature) at the uniforms `u`, in token order; never one of probability 0.

    token = min{k : cdf(k) > u * cdf(V)} with the cdf in float64; logp = z - logsumexp(z), entropy = -sum p log p.
    Temperature 0 is greedy: the first of the likeliest tokens, drawn with probability 1.
    """
    if temperature == 0:
        token = logits.argmax(-1)
        certain = torch.zeros(len(logits), dtype=torch.float32, device=logits.device)
        return Drawn(token, certain, certain)
    if logits.shape[1] <= ONE_PASS:
        return _draw_at_once(logits, u, temperature)
    rows = max(1, CHUNK.get(logits.device.type, CHUNK["cpu"]) // logits.shape[1])
    parts = [
        _draw_in_blocks(part, at, temperature)
        for part, at in zip(logits.split(rows), u.split(rows), strict=True)
    ]  # fmt: skip
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _draw_at_once(logits: Float[Tensor, "R V"], u: Float[Tensor, "R"], temperature: float) -> Drawn:
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    probs = logp.exp()
    token = invert(probs, u)
    entropy = -torch.special.xlogy(probs, probs).sum(-1)
    return Drawn(token, logp.gather(1, token[:, None])[:, 0], entropy)


def invert(probs: Float[Tensor, "R V"], u: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The token at which the CDF passes `u`; never one of probability 0."""
    cdf = probs.double().cumsum(-1)
    target = u.double().clamp(max=1 - 2.0**-53) * cdf[:, -1]
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0].clamp(max=probs.shape[1] - 1)


def _draw_in_blocks(logits: Float[Tensor, "R V"], u: Float[Tensor, "R"], temperature: float) -> Drawn:
    """The same in few passes: sums per block first, then the tokens of the one block in which the draw falls."""
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // BLOCK)
    z = logits.new_empty((rows, blocks * BLOCK), dtype=torch.float32)
    z[:, :vocabulary] = logits
    z[:, vocabulary:] = -torch.inf
    if temperature != 1.0:
        z.div_(temperature)
    z.sub_(z.amax(-1, keepdim=True)).clamp_(min=FLOOR)
    weights = z.exp()
    cdf = weights.view(rows, blocks, BLOCK).sum(-1, dtype=torch.float64).cumsum(-1)
    total = cdf[:, -1:]
    target = u.double().clamp(max=1 - 2.0**-53)[:, None] * total
    block = torch.searchsorted(cdf, target, right=True).clamp(max=blocks - 1)
    before = torch.nn.functional.pad(cdf, (1, 0)).gather(1, block)
    near = weights.view(rows, blocks, BLOCK).gather(1, block[:, :, None].expand(rows, 1, BLOCK))[:, 0]
    inside = torch.searchsorted(before + near.double().cumsum(-1), target, right=True)
    possible = torch.where(near > 0, torch.arange(BLOCK, device=near.device), 0).amax(-1, keepdim=True)
    token = block * BLOCK + torch.minimum(inside, possible)
    log_total = total.log()
    logp = z.gather(1, token) - log_total
    entropy = log_total - z.mul_(weights).sum(-1, keepdim=True) / total
    return Drawn(token[:, 0], logp[:, 0].float(), entropy[:, 0].float())
