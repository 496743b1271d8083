"""Metrics of the optimizer steps made from one rollout batch: value at the first, at the last, and the maximum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from harness.core.masked import masked
from harness.core.metrics import BY_LENGTH, QUANTILES, UPDATE_SUFFIXES
from harness.core.shapes import Bool, Float, Int, Tensor
from harness.core.types import UpdateTrace
from harness.monitor.mismatch import from_traces, injected_metrics
from harness.monitor.numbers import Row, Value, exp, k3, numbers, quantiles

_CRITIC = {"value/loss": "loss", "value/clip_frac": "clip_frac", "grad/norm_critic": "grad_norm"}


@torch.no_grad()
def update_metrics(traces: Sequence[UpdateTrace], *, mismatch: bool = True) -> Row:
    """All update-time metrics over contributing rows, one trace per optimizer step, plus counters and mismatch.

    Ratio, clip and `kl_old` are left out for a single on-policy update, whose ratio is 1 by construction;
    clip metrics also where the surrogate does not clip. `mismatch=False` where an old pass already gave it.
    """
    ratios = not (len(traces) == 1 and traces[0].on_policy and torch.equal(traces[0].logp, traces[0].old_logp))
    each = [_one(trace, ratios) for trace in traces]
    found = _suffixed([numbers(values) for values in each])
    found |= numbers(length_metrics(traces[-1])) if traces and ratios else {}
    gaps = from_traces(traces) if mismatch else {}
    return found | numbers({**_counters(traces), **injected_metrics(traces), **gaps})


def _one(trace: UpdateTrace, ratios: bool) -> dict[str, Value]:
    found: dict[str, Value] = {"loss/total": trace.loss, "grad/norm_pre": trace.grad_norm}
    found |= {f"penalty/{name}": value for name, value in trace.penalties.items()}
    critic: Mapping[str, float] = trace.critic or {}
    found |= {key: critic[name] for key, name in _CRITIC.items() if name in critic}
    if ratios:
        difference, use, count = _log_ratios(trace)
        if bool(use.any()):
            found |= ratio_metrics(difference, use, count)
            found |= clip_metrics(trace, use, count) if trace.has_clip else {}
    return found


def _log_ratios(trace: UpdateTrace) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"], Int[Tensor, "B"]]:
    """d = logp - old_logp, the tokens where both are finite, and how many of them every row has."""
    use = trace.mask & trace.logp.isfinite() & trace.old_logp.isfinite()
    return masked((trace.logp - trace.old_logp).double(), use), use, use.sum(-1)


def length_metrics(trace: UpdateTrace) -> dict[str, Value]:
    """Spread of the ratio among rows of like length: bins (L/2, L], L = 1, 2, 4, ..., of two rows and more.

    Under independent tokens SD(sum_t d) grows as L^.5 and SD(mean_t d) falls as L^-.5; this measures it.
    """
    d, use, count = _log_ratios(trace)
    upper = 2 ** torch.ceil(torch.log2(count.clamp(min=1).double())).long()
    found: dict[str, Value] = {}
    for end in upper[count > 0].unique().tolist():
        rows = (upper == end) & (count > 0)
        if int(rows.sum()) < 2:
            continue
        full = d[rows].sum(-1)
        values = {
            "rows": rows.sum(),
            "full_logsd": full.std(correction=0),
            "geo_logsd": (full / count[rows]).std(correction=0),
            "ess_tok": effective_share(d[rows][use[rows]]),
        }
        found |= {f"{BY_LENGTH}{end}/{name}": value for name, value in values.items()}
    return found


def ratio_metrics(d: Float[Tensor, "B T"], use: Bool[Tensor, "B T"], count: Int[Tensor, "B"]) -> dict[str, Value]:
    """Spread of r = e^d and s_i = e^(mean d), effective sample sizes, and KL(old || new); d = logp - old_logp."""
    token = d[use].sort().values
    kept = count > 0
    full = d.sum(-1)[kept]
    mean = (full / count[kept]).sort().values
    return {
        **_spread("ratio/tok", token),
        **_spread("ratio/seq_geo", mean),
        "ratio/seq_full_logsd": full.std(correction=0),
        "ratio/ess_tok": effective_share(token),
        "ratio/ess_seq": effective_share(mean),
        "ratio/ess_seq_full": effective_share(full),
        "kl_old/k1": -token.mean(),
        "kl_old/k3": k3(token).mean(),
    }


def effective_share(log_weight: Float[Tensor, "N"]) -> Tensor:
    """ESS / n = (sum w)^2 / (n sum w^2) in (0, 1], from log w, so that no weight overflows."""
    log_ess = 2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)
    return (log_ess - math.log(log_weight.numel())).exp()


def _spread(prefix: str, ordered_log: Float[Tensor, "N"]) -> dict[str, Value]:
    ratio = exp(ordered_log)
    tails = dict(zip(QUANTILES, quantiles(ratio, tuple(QUANTILES.values())), strict=True))
    values = {"mean": ratio.mean(), "max": ratio[-1], "min": ratio[0], **tails}
    return {f"{prefix}_{name}": value for name, value in values.items()}


def clip_metrics(trace: UpdateTrace, use: Bool[Tensor, "B T"], count: Int[Tensor, "B"]) -> dict[str, Value]:
    """Shares of tokens and of rows whose clip is active, and of tokens outside the range."""
    tokens, rows = count.sum(), (count > 0).sum()
    low, high = trace.clipped_low & use, trace.clipped_high & use
    found: dict[str, Value] = {"clip/outside_range": (trace.outside & use).sum() / tokens}
    for name, flags in (("low", low), ("high", high), ("any", low | high)):
        found[f"clip/tok_{name}"] = flags.sum() / tokens
        found[f"clip/seq_{name}"] = flags.any(-1).sum() / rows
    return found


def _suffixed(series: Sequence[Row]) -> Row:
    """Per key: value at the first update, at the last, and the maximum of the finite ones."""
    found: Row = {}
    for key in dict.fromkeys(key for values in series for key in values):
        known = [v for values in series if (v := values.get(key)) is not None]
        three = (series[0].get(key), series[-1].get(key), max(known, default=None))
        found |= {f"{key}/{suffix}": v for suffix, v in zip(UPDATE_SUFFIXES, three, strict=True)}
    return found


def _counters(traces: Sequence[UpdateTrace]) -> dict[str, Value]:
    bad = [((~t.logp.isfinite()) & t.mask).sum() for t in traces]
    return {
        "grad/clipped_frac": sum(t.grad_clipped for t in traces) / len(traces) if traces else None,
        "budget/grad_tokens": torch.stack([t.mask.sum() for t in traces]).sum() if traces else 0,
        "budget/optimizer_steps": len(traces) - sum(t.nonfinite for t in traces),
        "health/nonfinite_loss": sum(not math.isfinite(t.loss) for t in traces),
        "health/nonfinite_grad": sum(not math.isfinite(t.grad_norm) for t in traces),
        "health/nonfinite_logits": torch.stack(bad).sum() if bad else 0,
        "health/skipped_updates": sum(t.nonfinite for t in traces),
    }


@torch.no_grad()
def parameter_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> Row:
    """Norm of the weights' change over a step, relative to the weights, and the share a bfloat16 copy would miss."""
    if not before:
        return {}
    pairs = [(b.detach().double(), a.detach().double()) for b, a in zip(before, after, strict=True)]
    moved = torch.stack([(a - b).square().sum() for b, a in pairs]).sum().sqrt()
    size = torch.stack([b.square().sum() for b, _ in pairs]).sum().sqrt()
    same = torch.stack([(b.bfloat16() == a.bfloat16()).sum() for b, a in pairs]).sum()
    return numbers(
        {
            "update/param_norm": moved,
            "update/rel": moved / size,
            "update/bf16_unchanged": same / sum(b.numel() for b, _ in pairs),
        }
    )
