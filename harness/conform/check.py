"""Runs golden cases and compares every output."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.conform.cases import Case, error_of, load
from harness.conform.suites import LOSS_SUITES, adapter
from harness.core.errors import UsageError
from harness.core.masked import masked
from harness.core.shapes import Tensor

Loss = Callable[[dict[str, Tensor], dict[str, Any]], Tensor]

# Shares of clipped tokens: the peers average some of them in float32, so they have a tolerance of their own.
METRICS = frozenset(
    {"clipfrac", "clipfrac_lower", "vf_clipfrac", "cispo_clip_ratio"}
    | {f"clip_ratio_{side}_mean" for side in ("low", "high", "region")}
)
# What other quantile sketches gave; ours are exact, so the share of equal choices is reported instead.
SKETCHES = frozenset({"k_crick", "k_tdigest", "q_crick", "q_tdigest"})
OUR_SKETCH = "k_ours"  # of `selection.tdigest`, which no file holds; absent where its package is not installed
TOKENS = frozenset({"advantages", "advantages_raw", "returns", "kl", "token_level_rewards"})  # free where masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One case."""

    case: Case
    errors: Mapping[str, float]  # by output
    agreement: Mapping[str, float] = field(default_factory=dict)  # with sketches

    @property
    def failed(self) -> list[str]:
        """Outputs beyond their tolerance."""
        return [name for name, error in self.errors.items() if not error <= self.tolerance(name)]

    def tolerance(self, name: str) -> float:
        """Of one output."""
        return max(self.case.tol, self.case.tol_metrics) if name in METRICS else self.case.tol


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """All cases of one suite."""

    suite: str
    cases: int
    passed: int
    max_error: float  # over all outputs but clip fractions
    tol: float
    failed: tuple[str, ...]  # case: outputs
    agreement: Mapping[str, float]  # mean over cases

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it."""
        return {
            "suite": self.suite,
            "cases": self.cases,
            "passed": self.passed,
            "max_error": self.max_error if self.max_error < float("inf") else None,
            "tol": self.tol,
            "failed": list(self.failed),
        }


def compare(case: Case) -> Compared:
    """Every output of the file against our parts; one that we do not give is an error of infinity."""
    found = adapter(case.suite)(case)
    errors, agreement = {}, {}
    if OUR_SKETCH in found:
        agreement[OUR_SKETCH] = float((found[OUR_SKETCH] == found["k_exact"]).double().mean())
    for name, expected in case.expected.items():
        if name in SKETCHES:
            if name.startswith("k_"):
                agreement[name] = float((found["k_exact"] == expected).double().mean())
        elif name not in found:
            errors[name] = float("inf")
        elif name in TOKENS and "mask" in case.given and expected.shape == case.mask.shape:
            errors[name] = error_of(masked(found[name], case.mask), masked(expected, case.mask))
        else:
            errors[name] = error_of(found[name], expected)
    return Compared(case=case, errors=errors, agreement=agreement)


def compare_loss(case: Case, loss: Loss) -> Compared:
    """A third party's loss: its value, and its gradient with respect to `logp`. What it raises is a failed case."""
    inputs = {name: value.clone() for name, value in case.given.items()}
    inputs.setdefault("advantages", case.expected["advantages"].clone())
    logp = inputs["logp"] = inputs["logp"].requires_grad_()
    try:
        value = loss(inputs, dict(case.hyper))
    except Exception as error:  # somebody else's code; the other cases are still worth checking
        return Compared(case=case, errors={f"raised {type(error).__name__}: {error}": float("inf")})
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UsageError(f"the loss returned {type(value).__name__}", "it must be a scalar tensor", "e.g. x.mean()")
    (grad,) = torch.autograd.grad(value.reshape(()), logp, allow_unused=True)
    got = {"loss": value.reshape(()), "grad_logp": torch.zeros_like(logp) if grad is None else grad}
    return Compared(case=case, errors={name: error_of(got[name], case.expected[name]) for name in got})


def find_loss(name: str) -> Loss:
    """The function named `module:function`."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--loss {name}", f"it cannot be imported: {error}", "module:function, with the module on PYTHONPATH"
        ) from None
    if not callable(found):
        raise UsageError(f"--loss {name}", "it is no function", "f(inputs, hyper) -> scalar tensor")
    return found  # type: ignore[no-any-return]


def check(files: Iterable[Path], loss: Loss | None = None, only: tuple[str, ...] = ()) -> list[SuiteResult]:
    """Results per suite; with `loss`, of the policy-loss suites. `only` restricts the suites."""
    for suite in only:
        adapter(suite)
    by_suite: dict[str, list[Compared]] = {}
    for path in files:
        case = load(path)
        adapter(case.suite)  # an unknown suite is an error even where it would be left out
        if (only and case.suite not in only) or (loss is not None and case.suite not in LOSS_SUITES):
            continue
        done = compare(case) if loss is None else compare_loss(case, loss)
        by_suite.setdefault(case.suite, []).append(done)
    if not by_suite:
        raise UsageError("conform", "no case of these suites is in the folder", "another folder, or fewer restrictions")
    return [_summary(suite, done) for suite, done in sorted(by_suite.items())]


def _summary(suite: str, done: list[Compared]) -> SuiteResult:
    failed = tuple(f"{c.case.name}: {', '.join(c.failed)}" for c in done if c.failed)
    sketches = sorted({name for c in done for name in c.agreement})
    return SuiteResult(
        suite=suite,
        cases=len(done),
        passed=len(done) - len(failed),
        max_error=max((e for c in done for name, e in c.errors.items() if name not in METRICS), default=0.0),
        tol=max(c.case.tol for c in done),
        failed=failed,
        agreement={name: sum(c.agreement[name] for c in done) / len(done) for name in sketches},
    )
