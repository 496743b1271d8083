"""Loads golden cases and maps the peers' setting names to records; no mathematics here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.core.algorithm import Algorithm
from harness.core.parts import AdvantageInput, Updates
from harness.core.types import LossOutput

OPEN = Path(__file__).parent / "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One `.npz`."""

    name: str
    hyper: Mapping[str, Any]
    tol: float
    tol_metrics: float
    given: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    @property
    def mask(self) -> Tensor:
        return self.given["mask"].bool()


def load(path: Path) -> Case:
    with np.load(path) as data:
        meta = json.loads(str(data["meta"]))
        arrays = {k: torch.from_numpy(np.array(data[k])) for k in data.files if k != "meta"}
    return Case(
        name=path.stem,
        hyper=meta["hyper"],
        tol=meta["tol"],
        tol_metrics=meta.get("tol_metrics", meta["tol"]),
        given={k[4:]: v for k, v in arrays.items() if k.startswith("in__")},
        expected={k[5:]: v for k, v in arrays.items() if k.startswith("out__")},
    )


def cases(*suites: str) -> list[Any]:
    """pytest parameters for all cases of some suites; a suite without cases is an error."""
    found = {suite: sorted(OPEN.glob(f"{suite}__*.npz")) for suite in suites}
    assert all(found.values()), found
    return [pytest.param(path, id=path.stem) for paths in found.values() for path in paths]


def close(actual: Any, expected: Tensor, tol: float, what: str = "") -> None:
    """max |a - b| / max(1, |b|) <= tol."""
    a, b = torch.as_tensor(actual, dtype=torch.float64), expected.double()
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
    error = ((a - b).abs() / b.abs().clamp(min=1)).max().item() if a.numel() else 0.0
    assert error <= tol, f"{what}: relative error {error:.3g} > {tol:g}"


def verl_aggregate(name: str) -> dict[str, Any]:
    extra: dict[str, dict[str, Any]] = {
        "seq-mean-token-mean": {"eps": 1e-8},
        "seq-mean-token-sum-norm": {"per_row": False},
    }
    return {"kind": name, **extra.get(name, {})}


def kl_penalty(estimator: str | None, coef: float, place: str = "loss", clamp: bool = True) -> list[dict[str, Any]]:
    if not estimator or not coef:
        return []
    name = {"low_var_kl": "k3"}.get(estimator, estimator)
    return [{"kind": "kl", "estimator": name, "coef": coef, "place": place, "clamp": clamp}]


def record(**slots: Any) -> Algorithm:
    """A record with neutral values in the slots that are not named."""
    neutral: dict[str, Any] = {
        "name": "case",
        "siblings": 4,
        "admission": "all",
        "selection": "all",
        "rewards": [],
        "advantage": "group",
        "ratio": "token",
        "surrogate": "clip",
        "aggregate": "token-mean",
        "penalties": [],
        "updates": Updates(),
    }
    return Algorithm.model_validate({**neutral, **slots})


def verl_record(h: Mapping[str, Any]) -> Algorithm:
    """A record from the settings of a verl suite."""
    gspo = h.get("loss") == "gspo"
    return record(
        advantage={"kind": "group", "eps": h["eps_adv"], "std": "unbiased" if h["norm_by_std"] else "none"},
        ratio="sequence_value" if gspo else "token",
        surrogate={
            "kind": "clip",
            "low": h["clip_low"],
            "high": h["clip_high"],
            "dual": None if gspo or h["clip_c"] >= 1e30 else h["clip_c"],
        },
        aggregate=verl_aggregate(h["loss_agg"]),
        penalties=kl_penalty(h["kl_type"], h["kl_coef"]),
    )


TRL_AGGREGATES: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "seq-mean-token-mean", "count_empty": True},
    "dapo": {"kind": "token-mean"},
    "bnpo": {"kind": "token-mean"},
    "luspo": {"kind": "seq-mean-token-sum", "count_empty": True},
}
TRL_RATIOS = {"token": "token", "sequence": "sequence", "sequence_token": "sequence_value"}


def trl_record(h: Mapping[str, Any]) -> Algorithm:
    """A record from the settings of a TRL suite: no guards, eps 1e-4, empty rows counted."""
    dr_grpo = {"kind": "seq-mean-token-sum-norm", "length": h["max_completion_length"]}
    return record(
        advantage={
            "kind": "group",
            "eps": h["eps_adv"],
            "std": "none" if h["scale_rewards"] == "none" else "unbiased",
            "scope": "batch" if h["scale_rewards"] == "batch" else "group",
        },
        ratio={"kind": TRL_RATIOS[h["is_level"]], "guard": None},
        surrogate={"kind": "clip", "low": h["clip_low"], "high": h["clip_high"], "dual": h["delta"]},
        aggregate=TRL_AGGREGATES.get(h["loss_type"], dr_grpo),
        penalties=kl_penalty("k3-corrected" if h["bias_kl"] else "k3", h["beta"], clamp=False),
    )


def advantage_input(case: Case, **extra: Any) -> AdvantageInput:
    group = case.given["group_ids"].unique(return_inverse=True)[1]
    kept = torch.ones(len(group), dtype=torch.bool)
    given: dict[str, Any] = {"reward": case.given.get("rewards"), "kept": kept, **extra}
    return AdvantageInput(mask=case.mask, group=group, num_groups=int(group.max()) + 1, **given)


def check_gradient(out: LossOutput, logp: Tensor, case: Case) -> None:
    (grad,) = torch.autograd.grad(out.loss, logp)
    close(grad, case.expected["grad_logp"], case.tol, "grad_logp")
    assert not grad[~case.mask].any()
