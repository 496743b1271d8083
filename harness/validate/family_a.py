"""Synthetic curves, family A: the one the rules were looked at with while they were written.

Healthy: saturating reward with AR(1) noise, exponentially decaying entropy, KL growing like a square root, log-normal
gradient norms with two benign spikes per run, lengths that drift either way. Faults: linear ramps of 5-25 steps from an
onset in [80, 300].
"""

from __future__ import annotations

import numpy as np

from harness.validate.curves import Array, Columns, Curve, Fault, ar1, bent, shares
from harness.validate.targets import targets

STEPS = 400
AFTER = 120  # steps that follow an onset
RHO = 0.5


def curve(seed: int, kind: str | None) -> Curve:
    """One healthy run (None), or one with a fault of that type."""
    rng = np.random.default_rng([11, seed, *(kind or "").encode()])
    clean = _healthy(rng, rises=kind != "below_base")
    if kind is None:
        return Curve(name=f"a-healthy-{seed}", horizon=STEPS, logged=_logged(clean, rng), clean=clean, fault=None)
    onset = int(rng.integers(80, 301))
    ramp = int(rng.integers(5, 26))
    end = min(STEPS, onset + AFTER)
    clean = _faulty(kind, clean, onset, ramp, rng)
    logged = _logged(clean, rng)
    return Curve(
        name=f"a-{kind}-{seed}",
        horizon=STEPS,
        logged={k: v[:end] for k, v in logged.items()},
        clean={k: v[:end] for k, v in clean.items()},
        fault=Fault(type=kind, onset=onset, shape=f"ramp of {ramp}"),
    )


def solved(seed: int) -> Curve:
    """A healthy run that solves its task: reward near 1, all groups right, next to no entropy."""
    rng = np.random.default_rng([12, seed])
    t = np.arange(1, STEPS + 1)
    clean = _healthy(rng, rises=True)
    done = 1 / (1 + np.exp(-(t - rng.uniform(100, 250)) / rng.uniform(10, 30)))
    clean["reward/mean"] = clean["reward/mean"] * (1 - done) + 0.985 * done
    clean["entropy/exact"] = bent(clean["entropy/exact"], 0.004, done)
    clean["signal/zero_var_frac"] = 0.3 * (1 - done) + 0.99 * done
    clean["signal/zero_var_frac_all1"] = 0.2 * (1 - done) + 0.985 * done
    clean["signal/zero_var_frac_all0"] = 0.1 * (1 - done) + 0.005 * done
    scores = np.full(STEPS, np.nan)
    scores[::20] = clean["reward/mean"][::20]
    logged = {**_logged(clean, rng), "eval/task/validation/avg_at_1": scores}
    return Curve(name=f"a-solved-{seed}", horizon=STEPS, logged=logged, clean=clean, fault=None, solved=True)


def _healthy(rng: np.random.Generator, *, rises: bool) -> Columns:
    t = np.arange(1, STEPS + 1)
    u = rng.uniform
    base = u(0.15, 0.45)
    gain = u(0.25, 0.9 - base) if rises else 0.0
    h0 = u(0.3, 1.2)
    flat = np.ones(STEPS)
    return {
        "reward/mean": base + gain * (1 - np.exp(-t / u(30, 120))),
        "entropy/exact": h0 * (u(0.25, 0.5) + 0.5 * np.exp(-t / u(40, 200))),
        "kl_ref/k3": u(0.02, 0.2) * np.sqrt(t / STEPS),
        "ratio/ess_tok": flat * u(0.9, 0.995),
        "ratio/tok_q999": flat * u(1.1, 2.5),
        "ratio/tok_mean": flat * u(0.99, 1.01),
        "grad/norm_pre": flat * u(0.1, 2.0),
        "len/mean": u(15, 800) * (1 + u(-0.4, 0.8) * t / STEPS),
        "len/trunc_rate": flat * u(0.0, 0.08),
        "text/rep_rate": flat * u(0.0, 0.06),
        "text/distinct_in_group": flat * u(0.5, 0.95),
        "mismatch/k3": flat * u(1e-4, 3e-3),
        "mismatch/abs_dlogp_mean": flat * u(1e-3, 8e-3),
        "mismatch/pearson_p": flat * u(0.993, 0.9999),
        "signal/zero_var_frac": u(0.1, 0.4) + u(0.0, 0.35) * t / STEPS,
        "value/explained_var": u(0.3, 0.7) * (1 - np.exp(-t / 20)),
        "moe/dead_experts": flat * u(0.0, 0.05),
        "moe/route_entropy": flat * u(0.85, 0.97),
        "moe/max_vio": flat * u(0.3, 1.2),
        "moe/expert_change": flat * u(0.02, 0.09),
        "update/rel": flat * u(1e-4, 1e-3),
        "health/nonfinite_loss": 0 * flat,
    }


def _faulty(kind: str, clean: Columns, onset: int, ramp: int, rng: np.random.Generator) -> Columns:
    t = np.arange(1, STEPS + 1)
    if kind == "numeric":
        return {**clean, "health/nonfinite_loss": np.where(t == onset, 1.0, 0.0)}
    weight = np.clip((t - onset + 1) / ramp, 0.0, 1.0)
    found = dict(clean)
    for key, target in targets(kind, clean, onset, rng).items():
        found[key] = (1 - weight) * clean[key] + weight * target
    return found


def _logged(clean: Columns, rng: np.random.Generator) -> Columns:
    """With the noise of each metric: additive for the reward and shares, multiplicative for the rest."""
    n = STEPS

    def times(key: str, sd: float) -> Array:
        return np.asarray(clean[key] * np.exp(ar1(rng, n, sd, RHO)))

    def plus(key: str, sd: float) -> Array:
        return shares(clean[key] + ar1(rng, n, sd, RHO))

    spikes = np.ones(n)
    spikes[rng.integers(0, n, rng.poisson(2))] = rng.uniform(5, 20)
    found = dict(clean)
    found |= {key: plus(key, sd) for key, sd in _ADDITIVE.items() if key in clean}
    found |= {key: times(key, sd) for key, sd in _TIMES.items()}
    found["value/explained_var"] = clean["value/explained_var"] + ar1(rng, n, 0.06, RHO)
    found["grad/norm_pre"] = found["grad/norm_pre"] * spikes
    found["ratio/tok_mean"] = clean["ratio/tok_mean"] + rng.normal(0, 0.004, n)
    return found


_ADDITIVE = {
    "reward/mean": 0.03, "ratio/ess_tok": 0.01, "len/trunc_rate": 0.015, "text/rep_rate": 0.012,
    "text/distinct_in_group": 0.03, "mismatch/pearson_p": 0.001, "signal/zero_var_frac": 0.03,
    "signal/zero_var_frac_all0": 0.01, "signal/zero_var_frac_all1": 0.02, "moe/dead_experts": 0.01,
    "moe/route_entropy": 0.01,
}  # fmt: skip
_TIMES = {
    "entropy/exact": 0.06, "kl_ref/k3": 0.15, "ratio/tok_q999": 0.06, "grad/norm_pre": 0.3, "len/mean": 0.04,
    "mismatch/k3": 0.3, "mismatch/abs_dlogp_mean": 0.2, "moe/max_vio": 0.15, "moe/expert_change": 0.15,
    "update/rel": 0.2,
}  # fmt: skip
