"""Disagreement between the engine that sampled and the engine that trains, under the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from harness.core.shapes import Bool, Float, Tensor
from harness.core.types import UpdateTrace
from harness.monitor.numbers import Value, exp, k3

Compared = tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"]]


def mismatch_metrics(compared: Iterable[Compared]) -> dict[str, Value]:
    """e = old_logp - behaviour_logp: mean and max |e|, k3, chi2 = E e^(2e) - 1, correlation of p; nats."""
    pairs = [_usable(*triple) for triple in compared]
    old = torch.cat([o for o, _ in pairs]) if pairs else torch.zeros(0)
    behaviour = torch.cat([b for _, b in pairs]) if pairs else torch.zeros(0)
    if not old.numel():
        return {"mismatch/n": 0}
    e = old - behaviour
    size = e.abs()
    p, q = exp(old), exp(behaviour)
    p, q = p - p.mean(), q - q.mean()
    return {
        "mismatch/n": old.numel(),
        "mismatch/abs_dlogp_mean": size.mean(),
        "mismatch/abs_dlogp_max": size.max(),
        "mismatch/k3": k3(e).mean(),
        "mismatch/chi2_tok": exp(2 * e).mean() - 1,
        "mismatch/pearson_p": (p * q).sum() / (p.square().sum() * q.square().sum()).sqrt(),
    }


def from_traces(traces: Sequence[UpdateTrace]) -> dict[str, Value]:
    """The same over the rows the updates saw, where no old-log-prob pass was made over all rows.

    Before the first update the policy's own forward is the old one. A trace whose old log-probs are the
    behaviour's own says nothing and is left out, and so are rows that older weights sampled. Noise that was put into
    the ratio's base on purpose is no disagreement of the engines.
    """
    return mismatch_metrics(
        (
            t.logp if t.on_policy else old,
            t.behaviour_logp,
            t.mask if t.fresh is None else t.mask & t.fresh[:, None],
        )
        for t, old in ((t, t.old_logp if t.undisturbed is None else t.undisturbed) for t in traces)
        if t.on_policy or not torch.equal(old, t.behaviour_logp)
    )


def injected_metrics(traces: Sequence[UpdateTrace]) -> dict[str, Value]:
    """Mean and SD over the tokens of all updates of the noise put into the ratio's base; empty without any."""
    found = [(t.old_logp - t.undisturbed)[t.mask].double() for t in traces if t.undisturbed is not None]
    noise = torch.cat(found) if found else torch.zeros(0)
    if not noise.numel():
        return {}
    return {"mismatch/injected_mean": noise.mean(), "mismatch/injected_sd": noise.std(correction=0)}


def _usable(old: Tensor, behaviour: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    use = mask & old.isfinite() & behaviour.isfinite()
    return old[use].double(), behaviour[use].double()
