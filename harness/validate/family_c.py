"""Synthetic curves, family C: held out. Written after the last change of a rule, and looked at for its results only.

Healthy: one latent disturbance that moves all metrics together, random walks, shifts of level (responses that become
half as long again, KL that doubles), the reward as a count of right answers among few rows, rounded logs, every second
step unlogged. Faults: sigmoids, stairs, overshoot with a return half way, two stages, intermittent ones.
"""

from __future__ import annotations

import numpy as np

from harness.validate.curves import Array, Columns, Curve, Fault, pick, shares, straight
from harness.validate.targets import targets

HORIZONS = (120, 300, 500)
AFTER = 180
SHAPES = ("sigmoid", "stairs", "overshoot", "stages", "intermittent")


def curve(seed: int, kind: str | None) -> Curve:
    """One healthy run (None), or one with a fault of that type."""
    rng = np.random.default_rng([37, seed, *(kind or "").encode()])
    steps = int(pick(rng, HORIZONS[1:] if kind in (None, "value_failure") else HORIZONS))
    clean = _healthy(rng, steps, rises=kind != "below_base")
    if kind is None:
        logged = _thinned(_logged(clean, rng), rng)
        return Curve(name=f"c-healthy-{seed}", horizon=steps, logged=logged, clean=clean, fault=None)
    onset = int(rng.integers(int(0.35 * steps), int(0.55 * steps)))
    shape = "once" if kind == "numeric" else str(pick(rng, SHAPES))
    clean = _faulty(kind, clean, onset, shape, rng)
    end = min(steps, onset + AFTER)
    logged = _logged(clean, rng)
    logged = logged if kind == "numeric" else _thinned(logged, rng)
    return Curve(
        name=f"c-{kind}-{seed}",
        horizon=steps,
        logged={k: v[:end] for k, v in logged.items()},
        clean={k: v[:end] for k, v in clean.items()},
        fault=Fault(type=kind, onset=onset, shape=shape),
    )


def _shift(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    """A factor of 1 that goes to another level somewhere, over a few steps."""
    t = np.arange(1, n + 1)
    return np.asarray(1 + (rng.uniform(low, high) - 1) / (1 + np.exp(-(t - rng.uniform(0.2, 0.9) * n) / 8)))


def _healthy(rng: np.random.Generator, n: int, *, rises: bool) -> Columns:
    x = np.arange(1, n + 1) / n
    u = rng.uniform
    flat = np.ones(n)
    base = u(0.15, 0.5)
    rise = u(0.3, 0.95 - base) * x ** u(0.4, 1.0) if rises else 0 * x
    h0 = u(0.2, 1.5)
    return {
        "reward/mean": base + rise,
        "entropy/exact": h0 * (1 - u(0.3, 0.75) * x),
        "kl_ref/k3": u(0.01, 0.12) * x * _shift(rng, n, 1.0, 2.0) + 1e-5,
        "ratio/ess_tok": 1 - u(0.005, 0.15) * flat,
        "ratio/tok_q999": 1 + u(0.1, 1.5) * flat,
        "ratio/tok_mean": 1 + u(-0.01, 0.01) * flat,
        "grad/norm_pre": u(0.05, 5.0) * _shift(rng, n, 0.6, 1.8),
        "len/mean": u(10, 400) * _shift(rng, n, 0.6, 1.6),
        "len/trunc_rate": u(0.0, 0.1) * _shift(rng, n, 0.8, 1.5),
        "text/rep_rate": u(0.0, 0.08) * flat,
        "text/distinct_in_group": 1 - u(0.1, 0.5) * x,
        "mismatch/k3": u(1e-6, 2e-3) * flat,
        "mismatch/abs_dlogp_mean": u(1e-4, 8e-3) * flat,
        "mismatch/pearson_p": 1 - u(1e-5, 6e-3) * flat,
        "signal/zero_var_frac": u(0.1, 0.4) + u(0.0, 0.35) * x,
        "value/explained_var": u(0.15, 0.7) + 0 * x,
        "moe/dead_experts": u(0.0, 0.12) * flat,
        "moe/route_entropy": 1 - u(0.02, 0.2) * flat,
        "moe/max_vio": u(0.2, 1.8) * flat,
        "moe/expert_change": u(0.01, 0.08) * (1 - 0.5 * x),
        "update/rel": u(1e-6, 1e-3) * flat,
        "health/nonfinite_logits": 0 * flat,
    }


def _weights(shape: str, n: int, onset: int, rng: np.random.Generator) -> Array:
    """How far the fault has taken over, 0 before its onset."""
    past = np.maximum(0, np.arange(1, n + 1) - onset + 1)
    width = rng.uniform(10, 60)
    ramp = np.clip(past / width, 0.0, 1.0)
    if shape == "sigmoid":
        return np.where(past > 0, 1 / (1 + np.exp(-(past - width / 2) / (width / 10))), 0.0)
    if shape == "stairs":
        return np.asarray(np.ceil(4 * ramp) / 4)
    if shape == "overshoot":
        return np.where(past > 1.5 * width, 0.9, np.minimum(1.15 * ramp, 1.0))
    if shape == "stages":
        return np.asarray(0.35 * np.clip(past / 5, 0, 1) + 0.65 * np.clip((past - width) / 10, 0, 1))
    off = (past > 25) & (rng.uniform(size=n) < 0.1)  # intermittent: one step in ten looks healthy
    return np.where(off, 0.15, np.clip(past / 8, 0.0, 1.0))


def _faulty(kind: str, clean: Columns, onset: int, shape: str, rng: np.random.Generator) -> Columns:
    n = len(clean["reward/mean"])
    if kind == "numeric":
        t = np.arange(1, n + 1)
        return {**clean, "health/nonfinite_logits": np.where((t >= onset) & (t < onset + 3), 17.0, 0.0)}
    weight = _weights(shape, n, onset, rng)
    found = dict(clean)
    for key, target in targets(kind, clean, onset, rng).items():
        found[key] = straight(clean[key], target, weight)
    return found


def _logged(clean: Columns, rng: np.random.Generator) -> Columns:
    """Everything is moved by one latent disturbance, and by its own noise; then rounded as a log would be."""
    n = len(clean["reward/mean"])
    latent = np.cumsum(rng.normal(0, 1, n))
    latent = (latent - np.linspace(latent[0], latent[-1], n)) / max(1.0, float(latent.std()))
    rows = int(pick(rng, (64, 256, 1024)))
    found = dict(clean)
    for key, (sd, common) in _NOISE.items():
        noise = sd * rng.laplace(0, 1 / np.sqrt(2), n) + common * latent
        if key in _BOUNDED:
            found[key] = shares(clean[key] + noise)
        else:
            found[key] = clean[key] * np.exp(noise)
    found["reward/mean"] = rng.binomial(rows, shares(clean["reward/mean"] + 0.01 * latent)) / rows
    found["value/explained_var"] = clean["value/explained_var"] + rng.normal(0, 0.05, n)
    found["ratio/tok_mean"] = clean["ratio/tok_mean"] + rng.normal(0, 0.005, n)
    spikes = rng.uniform(size=n) < 0.006
    found["grad/norm_pre"] = found["grad/norm_pre"] * np.where(spikes, rng.uniform(5, 40, n), 1.0)
    return {key: np.array([float(f"{v:.3g}") for v in values]) for key, values in found.items()}


def _thinned(logged: Columns, rng: np.random.Generator) -> Columns:
    """In a third of the runs every second step lacks everything but reward and lengths; in others points are lost."""
    n = len(logged["reward/mean"])
    how = int(rng.integers(3))
    odd = np.arange(n) % 2 == 1
    always = ("reward/mean", "len/mean", "len/trunc_rate")
    lost = {key: odd & (key not in always) if how == 0 else rng.uniform(size=n) < 0.1 * how for key in logged}
    return {key: np.where(lost[key], np.nan, values) for key, values in logged.items()}


_BOUNDED = (
    "ratio/ess_tok", "len/trunc_rate", "text/rep_rate", "text/distinct_in_group", "mismatch/pearson_p",
    "signal/zero_var_frac", "moe/dead_experts", "moe/route_entropy",
)  # fmt: skip
_NOISE: dict[str, tuple[float, float]] = {  # SD of its own, and what one unit of the latent disturbance adds
    "entropy/exact": (0.05, 0.06), "kl_ref/k3": (0.2, 0.05), "ratio/ess_tok": (0.012, -0.01),
    "ratio/tok_q999": (0.08, 0.03), "grad/norm_pre": (0.3, 0.1), "len/mean": (0.04, 0.04),
    "len/trunc_rate": (0.015, 0.01), "text/rep_rate": (0.012, 0.008), "text/distinct_in_group": (0.03, 0.02),
    "mismatch/k3": (0.3, 0.1), "mismatch/abs_dlogp_mean": (0.2, 0.1), "mismatch/pearson_p": (0.0008, 0.0),
    "signal/zero_var_frac": (0.04, 0.02), "moe/dead_experts": (0.015, 0.0), "moe/route_entropy": (0.01, 0.0),
    "moe/max_vio": (0.15, 0.05), "moe/expert_change": (0.15, 0.05), "update/rel": (0.2, 0.1),
}  # fmt: skip
