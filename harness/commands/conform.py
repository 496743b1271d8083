"""`harness conform`: the field's own numbers against our parts, or against somebody's loss."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.conform.cases import case_files
from harness.conform.check import OUR_SKETCH, SuiteResult, check, find_loss

FAILED = 4


def run_conform(folder: Path | None, loss: str | None, suites: tuple[str, ...], as_json: bool) -> int:
    """Prints cases, passed, error and tolerance per suite; 0 if all of them pass."""
    if loss is not None:
        sys.path.insert(0, os.getcwd())  # a module in the working directory, as `python -m` would find it
    results = check(case_files(folder), None if loss is None else find_loss(loss), suites)
    cases, passed = sum(r.cases for r in results), sum(r.passed for r in results)
    if as_json:
        summary = {"ok": cases == passed, "cases": cases, "passed": passed}
        print(json.dumps({**summary, "suites": [r.as_dict() for r in results]}))
    else:
        _print(results)
        print(f"{passed} of {cases} cases in {len(results)} suites agree")
    return 0 if cases == passed else FAILED


def _print(results: list[SuiteResult]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("suite", "cases", "passed", "max error", "tolerance"):
        table.add_column(column, justify="left" if column == "suite" else "right", no_wrap=True)
    for r in results:
        table.add_row(r.suite, str(r.cases), str(r.passed), f"{r.max_error:.2g}", f"{r.tol:g}")
    Console(width=100).print(table, markup=False)
    for r in results:
        for line in r.failed:
            print(f"failed: {line}")
        for name, share in r.agreement.items():
            sketch = "our t-digest" if name == OUR_SKETCH else f"the quantile sketch of {name.removeprefix('k_')}"
            print(f"note: {r.suite}: k by {sketch} equals k by our exact quantiles on {share:.1%} of prompts")
        if r.agreement and OUR_SKETCH not in r.agreement:
            print(f"note: {r.suite}: our t-digest was not compared: fastdigest is not installed (extra `tdigest`)")
