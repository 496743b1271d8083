"""Per-token estimators of KL(policy || reference) from the sampled token, d = log pi - log pi_ref."""

from __future__ import annotations

from typing import Literal

from harness.core.shapes import Float, Tensor

Estimator = Literal["k1", "abs", "k2", "k3", "k1+", "k3+", "k3-corrected"]


def k3(d: Float[Tensor, "B T"], clamp: bool) -> Float[Tensor, "B T"]:
    """exp(-d) + d - 1, never negative; clamped as verl: d to +-20, then the value to +-10."""
    if clamp:
        d = d.clamp(-20.0, 20.0)
    value = (-d).exp() + d - 1
    return value.clamp(-10.0, 10.0) if clamp else value


def straight_through(value: Float[Tensor, "B T"], gradient: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The value of one tensor with the gradient of another."""
    return value.detach() + gradient - gradient.detach()


def kl_estimate(
    estimator: Estimator,
    logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    clamp: bool = True,
    bound: float | None = None,
) -> Float[Tensor, "B T"]:
    """Value and gradient of one estimator, limited to +-`bound` with no gradient outside.

    k1 = d (expected gradient 0), abs = |d|, k2 = d^2 / 2 (gradient d: reverse KL on-policy), k3 = exp(-d) + d - 1,
    k1+ and k3+ = value of k1, k3 with the gradient of k2, k3-corrected = r k3 with r = pi / pi_old (gradient r d).
    Source: Schulman, "Approximating KL divergence"; DeepSeekMath Eq. 4 (k3); TRL `use_bias_correction_kl`.
    """
    value = _estimate(estimator, logp, ref_logp, old_logp, clamp)
    return value if bound is None else value.clamp(-bound, bound)


def _estimate(
    estimator: Estimator,
    logp: Float[Tensor, "B T"],
    ref_logp: Float[Tensor, "B T"],
    old_logp: Float[Tensor, "B T"],
    clamp: bool,
) -> Float[Tensor, "B T"]:
    d = logp - ref_logp.detach()
    match estimator:
        case "k1":
            return d
        case "abs":
            return d.abs()
        case "k2":
            return 0.5 * d.square()
        case "k3":
            return k3(d, clamp)
        case "k1+":
            return straight_through(d, 0.5 * d.square())
        case "k3+":
            return straight_through(k3(d, clamp), 0.5 * d.square())
        case "k3-corrected":
            return (logp - old_logp.detach()).exp() * k3(d, clamp)


def adapted(coef: float, kl: float, target: float, horizon: float, num_responses: int) -> float:
    """coef (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon), the proportional controller of a KL coefficient.

    `kl` is the mean over the batch's responses, n their number. Source: 1909.08593; verl `AdaptiveKLController`.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num_responses / horizon)
