"""`algorithms/` is mathematics: no files, no logging, no environment, no global random numbers.

And nobody outside it asks which algorithm is running: that would be a missing slot.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from harness.core.algorithm import SLOTS
from tests.architecture.rules import room_of
from tests.architecture.source import Module, modules, snippet

ALGORITHMS_MAY_IMPORT = {
    "__future__", "abc", "collections", "dataclasses", "enum", "functools", "itertools", "math", "typing",
    "warnings", "pydantic", "torch", "fastdigest", "algorithms", "harness",
}  # fmt: skip
IMPURE_NAMES = {"open", "print", "input", "exec", "eval", "environ", "getenv"}
GLOBAL_RANDOM = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli",
    "multinomial", "poisson", "manual_seed", "seed", "dropout", "uniform_", "normal_", "bernoulli_", "random_",
    "exponential_", "cauchy_", "geometric_", "log_normal_", "get_rng_state", "set_rng_state",
}  # fmt: skip
FILES = {"save", "load", "from_file"}


def impurities(module: Module) -> Iterator[str]:
    """What a pure module must not do."""
    for imported in module.imports:
        if imported.target.partition(".")[0] not in ALGORITHMS_MAY_IMPORT:
            yield f"{module.at(imported.line)}: imports {imported.target}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id in IMPURE_NAMES:
            yield f"{module.at(node.lineno)}: uses {node.id}"
        if isinstance(node, ast.Attribute) and node.attr in IMPURE_NAMES | GLOBAL_RANDOM | FILES:
            yield f"{module.at(node.lineno)}: uses .{node.attr}; a part that draws gets `uniform` handed in"
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield f"{module.at(node.lineno)}: keeps state in {', '.join(node.names)}"


def _preset_names() -> frozenset[str]:
    files = {name.removeprefix("algorithms.") for name in modules() if name.startswith("algorithms.")}
    stems = {f for f in files if "." not in f} - {"parts", "arms", "rosters", "controls"}
    return frozenset(stems | {s.replace("_", "-") for s in stems} | {"ppo", "grpo", "dapo", "gspo", "gfpo"})


def _constants(node: ast.AST) -> set[str]:
    return {n.value.lower() for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _asks_for_algorithm(node: ast.AST) -> bool:
    """`algorithm`, `spec.algorithm`, `algorithm.name`, `algorithm.advantage.kind` and their like."""
    path = ast.unparse(node).split(".")
    if path[-1] == "kind":
        return len(path) > 1 and path[-2] in SLOTS
    return path[-1] in ("algorithm", "algo") or (
        path[-1] == "name" and len(path) > 1 and path[-2] in ("algorithm", "algo")
    )


def special_cases(module: Module) -> Iterator[str]:
    """Comparisons of an algorithm (or of one of its parts' kinds) with a literal."""
    presets = _preset_names()
    for node in ast.walk(module.tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            sides = [node.func.value, *node.args]
        elif isinstance(node, ast.Match):
            sides = [node.subject, *(c.pattern.value for c in node.cases if isinstance(c.pattern, ast.MatchValue))]
        literals = set().union(
            *(_constants(s) for s in sides if isinstance(s, ast.Constant | ast.Tuple | ast.Set | ast.List))
        )
        asked = any(_asks_for_algorithm(s) for s in sides)
        if literals and (asked or literals & presets):
            line, code = getattr(node, "lineno", 0), ast.unparse(node).splitlines()[0]
            yield f"{module.at(line)}: `{code}` asks which algorithm runs"


def test_algorithms_are_pure() -> None:
    problems = [p for name, m in modules().items() if room_of(name) == "algorithms" for p in impurities(m)]
    assert not problems, "\n" + "\n".join(problems)


def test_no_special_case_for_an_algorithm() -> None:
    problems = [p for name, m in modules().items() if room_of(name) != "algorithms" for p in special_cases(m)]
    assert not problems, "\n" + "\n".join(problems) + "\nthat is a missing slot, or a missing need of a part"


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "import logging",
        "import random",
        "from pathlib import Path",
        "import torch\nx = torch.rand(3)",
        "import torch\ntorch.manual_seed(0)",
        "def f(x):\n    return x.uniform_()",
        "import torch\nx = torch.load('x')",
        "print(1)",
        "n = 0\ndef f():\n    global n\n    n += 1",
    ],
)
def test_impurity_is_seen(text: str) -> None:
    assert list(impurities(snippet("algorithms.x", text)))


@pytest.mark.parametrize(
    "text",
    [
        "if algorithm == 'ppo': pass",
        "if spec.algorithm in ('gspo', 'gspo_token'): pass",
        "if self.algorithm.name != 'my-own': pass",
        "if arm.startswith('GSPO'): pass",
        "if name == 'grpo': pass",
        "x = 1 if algorithm.advantage.kind == 'gae' else 2",
        "match spec.algorithm:\n    case 'dapo':\n        pass",
    ],
)
def test_a_special_case_is_seen(text: str) -> None:
    assert list(special_cases(snippet("harness.train.x", text)))


@pytest.mark.parametrize(
    "text",
    [
        "if arm == study.reference_arm: pass",
        "if 'critic' in algorithm.needs: pass",
        "if split == 'test': pass",
        "if a.algorithm == b.algorithm: pass",
    ],
)
def test_an_ordinary_comparison_is_allowed(text: str) -> None:
    assert not list(special_cases(snippet("harness.train.x", text)))
