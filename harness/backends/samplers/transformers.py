"""Sampling with the trainer's own model: KV cache, exact behaviour log-probs, counter-based random numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from harness.core.ports import SampleRequest
from harness.core.randomness import uniforms
from harness.core.shapes import Float, Int, Tensor
from harness.core.types import Completion

COMPACT_BELOW = 0.75  # finished rows leave the batch once fewer than this share is still generating


class TransformersSampler:
    """Reads the policy it was given, so weight sync is only a change of the version stamp.

    Tokens are drawn by inverting the CDF at one uniform per (key, position): repeating a request under the same
    weights repeats its response, and sampling more responses never shifts the others.
    """

    name = "transformers"
    exact_repeat = True

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        batch_tokens: int,
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._policy, self._pad, self._batch_tokens = policy, pad_id, batch_tokens
        self._eos = torch.tensor(sorted(eos_ids), device=policy.device)
        self._stop, self._decode = tuple(stop), decode
        self._version = 0
        keep = "logits_to_keep" in inspect.signature(policy.forward).parameters
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if keep else {}

    def sync(self, version: int) -> None:
        self._version = version

    def close(self) -> None:
        pass

    @torch.no_grad()
    def generate(
        self, requests: Sequence[SampleRequest], *, max_new_tokens: int, temperature: float
    ) -> list[list[Completion]]:
        """Completions per request, in order. Prompts are prefilled once and their cache is shared by the siblings."""
        results: list[list[Completion]] = [[] for _ in requests]
        for batch in self._batches(requests, max_new_tokens):
            flat = self._generate([requests[i] for i in batch], max_new_tokens, temperature)
            start = 0
            for i in batch:
                stop = start + len(requests[i].keys)
                results[i] = flat[start:stop]
                start = stop
        return results

    def _batches(self, requests: Sequence[SampleRequest], new: int) -> Iterator[list[int]]:
        """Requests of similar prompt length, at most `batch_tokens` padded tokens at a time."""
        batch: list[int] = []
        rows = 0
        for i in sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids)):
            request = requests[i]
            width = len(request.prompt_ids) + new
            if batch and (rows + len(request.keys)) * width > self._batch_tokens:
                yield batch
                batch, rows = [], 0
            batch.append(i)
            rows += len(request.keys)
        if batch:
            yield batch

    def _generate(self, requests: list[SampleRequest], new: int, temperature: float) -> list[Completion]:
        device = self._policy.device
        keys = [key for r in requests for key in r.keys]
        draws = torch.from_numpy(uniforms(keys, new)).to(device)
        logits, cache, mask = self._prefill(requests)
        num_rows = len(keys)
        tokens = torch.full((num_rows, new), self._pad, device=device)
        logps = torch.zeros(num_rows, new, device=device)
        entropies = torch.zeros(num_rows, new, device=device)
        lengths = torch.full((num_rows,), new, device=device)
        ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        rows = torch.arange(num_rows, device=device)  # which row each line of the batch is
        position = mask.sum(-1)
        for t in range(new):
            logp = torch.log_softmax(logits.float() / temperature, dim=-1)
            token = _invert(logp.exp(), draws[rows, t])
            tokens[rows, t] = token
            logps[rows, t] = logp.gather(1, token[:, None])[:, 0]
            entropies[rows, t] = -torch.special.xlogy(logp.exp(), logp.exp()).sum(-1)
            done = torch.isin(token, self._eos) | self._stopped(tokens, rows, t)
            lengths[rows] = torch.where(done & ~ended[rows], t + 1, lengths[rows])
            ended[rows] |= done
            active = ~ended[rows]
            if t == new - 1 or not bool(active.any()):
                break
            if float(active.float().mean()) < COMPACT_BELOW:
                keep = active.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, mask, token, position = rows[keep], mask[keep], token[keep], position[keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            output = self._policy(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            position = position + 1
        return self._completions(tokens, logps, entropies, lengths, ended)

    def _prefill(self, requests: list[SampleRequest]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Next-token logits, cache and attention mask per row, from one forward per prompt (left padding)."""
        device = self._policy.device
        width = max(len(r.prompt_ids) for r in requests)
        ids = torch.full((len(requests), width), self._pad, device=device)
        mask = torch.zeros(len(requests), width, dtype=torch.long, device=device)
        for i, request in enumerate(requests):
            ids[i, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids, device=device)
            mask[i, width - len(request.prompt_ids) :] = 1
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._policy.config)
        output = self._policy(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        copies = torch.tensor([len(r.keys) for r in requests], device=device)
        index = torch.repeat_interleave(torch.arange(len(requests), device=device), copies)
        cache.batch_select_indices(index)
        return output.logits[:, -1][index], cache, mask[index]

    def _stopped(self, tokens: Int[Tensor, "B T"], rows: Int[Tensor, "R"], t: int) -> Tensor:
        if not self._stop or self._decode is None:
            return torch.zeros(len(rows), dtype=torch.bool, device=tokens.device)
        texts = (self._decode(line) for line in tokens[rows, : t + 1].tolist())
        return torch.tensor([any(s in text for s in self._stop) for text in texts], device=tokens.device)

    def _completions(
        self, tokens: Tensor, logps: Tensor, entropies: Tensor, lengths: Tensor, ended: Tensor
    ) -> list[Completion]:
        rows = zip(tokens.tolist(), logps.tolist(), entropies.tolist(), lengths.tolist(), ended.tolist(), strict=True)
        return [
            Completion(
                token_ids=tuple(ids[:n]),
                logp=tuple(logp[:n]),
                entropy=tuple(entropy[:n]),
                segments=((n, self._version),),
                finish_reason="stop" if stop else "length",
            )
            for ids, logp, entropy, n, stop in rows
        ]


def _invert(probs: Float[Tensor, "R V"], u: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The token at which the CDF passes `u`; never one of probability 0."""
    cdf = probs.double().cumsum(-1)
    target = u.double().clamp(max=1 - 2.0**-53) * cdf[:, -1]
    return torch.searchsorted(cdf, target[:, None], right=True)[:, 0].clamp(max=probs.shape[1] - 1)
