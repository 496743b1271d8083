"""How far one optimizer step moves the routes of the same tokens: fixed tokens, looked at before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from harness.core.routes import ProbeSeen
from harness.core.routing import RouterSet, Watched, new_experts
from harness.core.shapes import Bool, Int, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteProbe:
    """Tokens of a few responses of the initial policy, and where it sent them."""

    input_ids: Int[Tensor, "b L"]  # right-padded
    counts: Bool[Tensor, "b L"]  # response tokens that are read
    start: Int[Tensor, "n layers k"]  # routes under the initial policy
    routers: RouterSet

    @torch.no_grad()
    def look(self, policy: nn.Module) -> Int[Tensor, "n layers k"]:
        """Routes of the counted tokens under the policy as it is now."""
        return _routes(policy, self.routers, self.input_ids, self.counts)


def new_probe(
    policy: nn.Module, routers: RouterSet, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int
) -> RouteProbe | None:
    """From (prompt, response) pairs under the initial policy; None where no response has two tokens."""
    device = next(policy.parameters()).device
    width = max((len(p) + len(r) for p, r in rows), default=0)
    ids = torch.full((len(rows), width), pad_id, device=device)
    counts = torch.zeros((len(rows), width), dtype=torch.bool, device=device)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor([*prompt, *response], device=device)
        counts[i, len(prompt) : len(prompt) + len(response) - 1] = True
    if not bool(counts.any()):
        return None
    with torch.no_grad():
        start = _routes(policy, routers, ids, counts)
    return RouteProbe(input_ids=ids, counts=counts, start=start, routers=routers)


def compared(probe: RouteProbe, before: Int[Tensor, "n layers k"], after: Int[Tensor, "n layers k"]) -> ProbeSeen:
    """1 - |new & old| / k, mean over tokens."""
    k = before.shape[-1]
    return ProbeSeen(
        step=new_experts(after, before).float().mean(0).cpu() / k,
        since_start=new_experts(before, probe.start).float().mean(0).cpu() / k,
    )


def _routes(policy: nn.Module, routers: RouterSet, ids: Tensor, counts: Tensor) -> Tensor:
    watched = Watched(routers)
    with watched.forward():
        policy.get_decoder()(input_ids=ids, use_cache=False)  # type: ignore[operator]
    return watched.last[counts.flatten()]
