"""Sampling re-stated without any of what makes it fast. Uniforms come from the keys, as they do everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from harness.core.ports import SampleRequest
from harness.core.randomness import uniforms

Row = tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]  # tokens, log-probs, entropies


@torch.no_grad()
def one_by_one(
    policy: PreTrainedModel, prompt: Sequence[int], key: tuple[int, ...], limit: int, eos: set[int], temperature: float
) -> Row:
    """One response: the whole sequence through the model for every token, no cache; the CDF walked token by token."""
    ids = list(prompt)
    logps, entropies = [], []
    for u in uniforms([key], limit)[0]:
        logits = policy(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy() / temperature
        p = np.exp(logits - logits.max())
        p /= p.sum()
        token, below = 0, p[0]
        while below <= u and token < len(p) - 1:
            token += 1
            below += p[token]
        ids.append(token)
        logps.append(float(np.log(p[token])))
        entropies.append(float(-sum(x * np.log(x) for x in p if x > 0)))
        if token in eos:
            break
    return tuple(ids[len(prompt) :]), tuple(logps), tuple(entropies)


@torch.no_grad()
def with_the_librarys_cache(
    policy: PreTrainedModel, requests: Sequence[SampleRequest], limit: int, eos: set[int], pad: int, temperature: float
) -> list[Row]:
    """All requests in one left-padded batch, shortest prompt first, by the library's growing cache.

    Finished rows leave once fewer than three quarters of the batch go on. Rows in the order of the requests given.
    """
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
    width = max(len(r.prompt_ids) for r in requests)
    ids = torch.tensor([[pad] * (width - len(requests[i].prompt_ids)) + [*requests[i].prompt_ids] for i in order])
    mask = torch.tensor(
        [[0] * (width - len(requests[i].prompt_ids)) + [1] * len(requests[i].prompt_ids) for i in order]
    )
    cache = DynamicCache(config=policy.config)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = policy(
        input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]  # fmt: skip
    line = torch.tensor([n for n, i in enumerate(order) for _ in requests[i].keys])
    cache.batch_select_indices(line)
    logits, mask = logits[line], mask[line]
    names = [(i, j) for i in order for j in range(len(requests[i].keys))]
    draws = {(i, j): uniforms([requests[i].keys[j]], limit)[0] for i, j in names}
    found: dict[tuple[int, int], tuple[list[int], list[float], list[float]]] = {name: ([], [], []) for name in names}
    over: set[tuple[int, int]] = set()
    for t in range(limit):
        logp = torch.log_softmax(logits.float() / temperature, dim=-1)
        p = logp.exp()
        cdf = p.double().cumsum(-1)
        u = torch.tensor([draws[name][t] for name in names], dtype=torch.float64)
        token = torch.searchsorted(cdf, (u.clamp(max=1 - 2.0**-53) * cdf[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp(max=p.shape[1] - 1)
        entropy = -torch.special.xlogy(p, p).sum(-1)
        for n, name in enumerate(names):
            if name not in over:
                for column, value in zip(found[name], (token[n], logp[n, token[n]], entropy[n]), strict=True):
                    column.append(value.item())
                if int(token[n]) in eos:
                    over.add(name)
        alive = torch.tensor([n for n, name in enumerate(names) if name not in over], dtype=torch.long)
        if t == limit - 1 or not len(alive):
            break
        if len(alive) / len(names) < 0.75:
            cache.batch_select_indices(alive)
            names, mask, token = [names[int(n)] for n in alive], mask[alive], token[alive]
        mask = torch.cat([mask, mask.new_ones(len(names), 1)], dim=1)
        logits = policy(
            input_ids=token[:, None], attention_mask=mask, position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
    rows = [found[i, j] for i in range(len(requests)) for j in range(len(requests[i].keys))]
    return [(tuple(a), tuple(b), tuple(c)) for a, b, c in rows]
