"""Where each fault takes which metrics: the ranges that the detectors are meant for. Shared by both families."""

from __future__ import annotations

import numpy as np

from harness.validate.curves import Columns

TYPES = (
    "entropy_collapse", "entropy_explosion", "reward_collapse", "below_base", "kl_blowup", "ratio_explosion",
    "grad_explosion", "numeric", "length_explosion", "length_collapse", "degenerate_text", "mismatch_blowup",
    "dead_signal", "expert_collapse", "router_volatility", "value_failure", "noop",
)  # fmt: skip
WARNINGS = ("router_volatility", "value_failure", "noop", "grad_spike")  # never alarms, whatever they find
EARLY = slice(4, 25)  # steps 5-25: the healthy baseline


def targets(kind: str, healthy: Columns, onset: int, rng: np.random.Generator) -> dict[str, float]:
    """Metric -> level at the height of the fault."""

    def level(key: str) -> float:
        return float(np.median(healthy[key][EARLY]))

    def before(key: str) -> float:
        return float(np.median(healthy[key][max(0, onset - 30) : onset]))

    u = rng.uniform
    match kind:
        case "entropy_collapse":
            return {"entropy/exact": level("entropy/exact") * u(0.01, 0.07)}
        case "entropy_explosion":
            return {"entropy/exact": max(level("entropy/exact"), 0.3) * u(4, 8)}
        case "reward_collapse":
            return {"reward/mean": before("reward/mean") * u(0.02, 0.35)}
        case "below_base":
            return {"reward/mean": level("reward/mean") * u(0.02, 0.35)}
        case "kl_blowup":
            return {"kl_ref/k3": u(0.8, 4.0)}
        case "ratio_explosion":
            return {"ratio/ess_tok": u(0.02, 0.22), "ratio/tok_q999": u(15, 300), "ratio/tok_mean": u(1.15, 1.6)}
        case "grad_explosion":
            return {"grad/norm_pre": before("grad/norm_pre") * u(12, 80)}
        case "length_explosion":
            return {"len/trunc_rate": u(0.45, 0.95), "len/mean": before("len/mean") * u(1.5, 5)}
        case "length_collapse":
            return {"len/mean": before("len/mean") * u(0.04, 0.16)}
        case "degenerate_text":
            return {"text/rep_rate": u(0.45, 0.95)}
        case "mismatch_blowup":
            return {
                "mismatch/k3": u(0.1, 1),
                "mismatch/abs_dlogp_mean": u(0.15, 0.8),
                "mismatch/pearson_p": u(0.4, 0.8),
            }
        case "dead_signal":
            return {"signal/zero_var_frac": u(0.975, 1.0)}
        case "expert_collapse":
            return {"moe/dead_experts": u(0.35, 0.7), "moe/route_entropy": u(0.1, 0.4), "moe/max_vio": u(7, 20)}
        case "router_volatility":
            return {"moe/expert_change": level("moe/expert_change") * u(5, 9)}
        case "value_failure":
            return {"value/explained_var": u(-1.0, -0.3)}
        case "noop":
            return {"update/rel": 0.0}
    raise AssertionError(kind)
