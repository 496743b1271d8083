"""Synthetic curves, family B: unlike A. Looking at it led to three changes of the rules, so C is held out instead.

Healthy: plateaus and late rises, power-law entropy, heavy-tailed and more persistent noise, gradient norms with periods
and bursts, missing points, stretches without any measurement, rescaled rewards, lengths and gradients, other horizons
(shortened logs among them). Faults: steps, exponential runaways, drifts of up to 100 steps, oscillation about the
faulty level, transient recoveries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.validate.curves import Array, Columns, Curve, Fault, ar1, bent, pick, shares, straight
from harness.validate.targets import targets

HORIZONS = (90, 200, 400, 600)
AFTER = 200  # steps that follow an onset, at most
SHAPES = ("step", "runaway", "drift", "oscillation", "recoveries")
OF_TRAILING = ("grad_explosion", "length_explosion", "length_collapse")  # slow drifts carry their own reference along
SLOWEST = {True: 40, False: 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Units in which this run's trainer happens to log."""

    reward: float
    shift: float
    length: float
    gradient: float


def curve(seed: int, kind: str | None) -> Curve:
    """One healthy run (None), or one with a fault of that type."""
    rng = np.random.default_rng([23, seed, *(kind or "").encode()])
    steps = int(pick(rng, HORIZONS[1:] if kind in (None, "value_failure") else HORIZONS))
    scale = Scale(
        reward=float(pick(rng, (1.0, 1.0, 10.0, 2.0))),
        shift=float(pick(rng, (0.0, 0.0, -1.0))),
        length=float(pick(rng, (1.0, 40.0))),
        gradient=float(pick(rng, (1.0, 1e-3, 300.0))),
    )
    clean = _healthy(rng, steps, scale, rises=kind != "below_base")
    if kind is None:
        logged = _gaps(_logged(clean, rng, scale), rng)
        return Curve(name=f"b-healthy-{seed}", horizon=steps, logged=logged, clean=clean, fault=None)
    onset = int(rng.integers(steps // 3, int(0.6 * steps)))
    shape = str(pick(rng, SHAPES))
    clean = _faulty(kind, clean, onset, shape, scale, rng)
    end = min(steps, onset + AFTER)
    logged = _gaps(_logged(clean, rng, scale), rng, numeric=kind == "numeric")
    return Curve(
        name=f"b-{kind}-{seed}",
        horizon=steps,
        logged={k: v[:end] for k, v in logged.items()},
        clean={k: v[:end] for k, v in clean.items()},
        fault=Fault(type=kind, onset=onset, shape=shape),
    )


def _healthy(rng: np.random.Generator, n: int, scale: Scale, *, rises: bool) -> Columns:
    t = np.arange(1, n + 1)
    x = t / n
    u = rng.uniform
    base, top = u(0.1, 0.4), u(0.6, 0.95)
    late = 1 / (1 + np.exp(-(x - u(0.05, 0.25)) / u(0.03, 0.08)))
    waves = 0.03 * np.sin(2 * np.pi * x * u(1, 5) + u(0, 6))
    reward = base + (top - base) * (late - late[0]) / (late[-1] - late[0]) + waves if rises else base + 0 * x
    flat = np.ones(n)
    grown = (1 + u(-0.3, 1.2) * x) * (1 + 0.1 * np.sin(2 * np.pi * x * u(1, 4)))
    return {
        "reward/mean": scale.reward * (reward * (1 - scale.shift) + scale.shift),
        "entropy/exact": u(0.2, 2.0) * np.maximum(t.astype(float) ** -u(0.05, 0.25), 0.2),
        "kl_ref/k3": u(0.02, 0.25) * (1 - np.exp(-3 * x)) + 1e-4,
        "ratio/ess_tok": flat * u(0.8, 0.99) - 0.05 * x,
        "ratio/tok_q999": u(1.05, 3.0) * (1 + 0.3 * x),
        "ratio/tok_mean": flat * u(0.98, 1.02),
        "grad/norm_pre": scale.gradient * u(0.2, 3.0) * (1 + 0.8 * x) * (1 + 0.3 * np.sin(2 * np.pi * t / u(10, 60))),
        "len/mean": scale.length * u(12, 60) * grown,
        "len/trunc_rate": np.maximum(0.0, u(0.0, 0.12) * (1 + x)),
        "text/rep_rate": flat * u(0.0, 0.1),
        "text/distinct_in_group": u(0.4, 1.0) * (1 - 0.3 * x),
        "mismatch/k3": flat * u(1e-5, 4e-3),
        "mismatch/abs_dlogp_mean": flat * u(5e-4, 9e-3),
        "mismatch/pearson_p": flat * u(0.992, 0.99999),
        "signal/zero_var_frac": u(0.05, 0.5) + u(-0.05, 0.3) * x,
        "value/explained_var": u(0.2, 0.8) * (1 - np.exp(-t / u(5, 15))),
        "moe/dead_experts": flat * u(0.0, 0.1),
        "moe/route_entropy": u(0.8, 0.98) * (1 - 0.05 * x),
        "moe/max_vio": flat * u(0.2, 2.0),
        "moe/expert_change": flat * u(0.01, 0.09),
        "update/rel": u(1e-5, 1e-2) * (1 - 0.5 * x),
        "health/nonfinite_grad": 0 * flat,
    }


def _weights(shape: str, n: int, onset: int, slow: int, rng: np.random.Generator) -> Array:
    """How far the fault has taken over, 0 before its onset."""
    t = np.arange(1, n + 1)
    past = np.maximum(0, t - onset + 1)
    ramp = np.clip(past / rng.uniform(5, 20), 0.0, 1.0)
    if shape == "step":
        return np.where(past > 0, 1.0, 0.0)
    if shape == "runaway":
        return np.asarray(np.clip((np.exp(past / 10.0) - 1) / np.expm1(3.0), 0.0, 1.0))
    if shape == "drift":
        return np.asarray(np.clip(past / rng.uniform(0.5 * slow, slow), 0.0, 1.0))
    if shape == "oscillation":
        wave = 0.12 * np.sin(2 * np.pi * past / rng.uniform(6, 16))
        return np.asarray(np.where(ramp >= 1.0, 1.0 + np.minimum(wave, 0.0), ramp))
    pause = int(rng.integers(15, 30))  # recoveries: a few healthy steps every now and then
    away = (past > 20) & (past % (pause + 6) < 5)
    return np.where(away, 0.2, ramp)


def _faulty(kind: str, clean: Columns, onset: int, shape: str, scale: Scale, rng: np.random.Generator) -> Columns:
    n = len(clean["reward/mean"])
    if kind == "numeric":
        hit = np.arange(1, n + 1) == onset
        return {**clean, "health/nonfinite_grad": np.where(hit, rng.integers(1, 5), 0).astype(float)}
    slow = min(SLOWEST[kind in OF_TRAILING], n // 3)
    weight = _weights(shape, n, onset, slow, rng)
    found = dict(clean)
    for key, target in targets(kind, clean, onset, rng).items():
        if key == "reward/mean":  # the share of what the run had is counted from the task's lowest reward
            low = scale.reward * scale.shift
            target = low + rng.uniform(0.02, 0.35) * (float(np.median(clean[key][max(0, onset - 30) : onset])) - low)
        shaped = bent if shape == "runaway" else straight
        found[key] = shaped(clean[key], target, weight)
    return found


def _logged(clean: Columns, rng: np.random.Generator, scale: Scale) -> Columns:
    n = len(clean["reward/mean"])

    def heavy(sd: float, rho: float = 0.3) -> Array:
        """Student-t noise, 4 degrees of freedom, over a persistent part."""
        return np.asarray(0.6 * sd * rng.standard_t(4, n) / np.sqrt(2) + 0.8 * ar1(rng, n, sd, rho))

    found = dict(clean)
    for key, sd in _ADDITIVE.items():
        found[key] = shares(clean[key] + heavy(sd))
    for key, sd in _TIMES.items():
        found[key] = clean[key] * np.exp(heavy(sd))
    found["reward/mean"] = clean["reward/mean"] + scale.reward * (1 - scale.shift) * heavy(0.025, 0.7)
    found["value/explained_var"] = clean["value/explained_var"] + heavy(0.05)
    found["ratio/tok_mean"] = clean["ratio/tok_mean"] + heavy(0.005)
    for _ in range(int(rng.poisson(1.5))):  # bursts of two or three large norms, which come to nothing
        at = int(rng.integers(0, n))
        found["grad/norm_pre"][at : at + int(rng.integers(1, 4))] *= rng.uniform(4, 25)
    return found


def _gaps(logged: Columns, rng: np.random.Generator, *, numeric: bool = False) -> Columns:
    """Points that were not logged, and stretches without anything; what a fault of one step is told by stays."""
    n = len(logged["reward/mean"])
    share = float(pick(rng, (0.0, 0.05, 0.2)))
    stretch = np.zeros(n, dtype=bool)
    if rng.uniform() < 0.4:
        at = int(rng.integers(0, n))
        stretch[at : at + int(rng.integers(5, 25))] = True
    kept = {key for key in logged if numeric and key.startswith("health/")}
    return {
        key: values if key in kept else np.where(stretch | (rng.uniform(size=n) < share), np.nan, values)
        for key, values in logged.items()
    }


_ADDITIVE = {
    "ratio/ess_tok": 0.015, "len/trunc_rate": 0.02, "text/rep_rate": 0.015, "text/distinct_in_group": 0.04,
    "mismatch/pearson_p": 0.001, "signal/zero_var_frac": 0.03, "moe/dead_experts": 0.012, "moe/route_entropy": 0.012,
}  # fmt: skip
_TIMES = {
    "entropy/exact": 0.08, "kl_ref/k3": 0.2, "ratio/tok_q999": 0.08, "grad/norm_pre": 0.35, "len/mean": 0.05,
    "mismatch/k3": 0.3, "mismatch/abs_dlogp_mean": 0.2, "moe/max_vio": 0.15, "moe/expert_change": 0.15,
    "update/rel": 0.2,
}  # fmt: skip
