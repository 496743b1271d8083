"""Adapters of golden suites name parts and hand them tensors; they compute nothing themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import Module, modules, snippet

ADAPTERS = ("harness.conform.records", "harness.conform.losses", "harness.conform.pieces", "harness.conform.suites")
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
CALLS = {
    "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow", "square", "sqrt", "rsqrt",
    "exp", "log", "matmul", "einsum", "lerp", "addcmul", "addcdiv", "cumsum", "softmax", "sigmoid", "clamp", "clip",
    "where", "maximum", "minimum", "neg", "std", "var", "logsumexp", "nan_to_num", "floor_divide", "remainder",
    "reciprocal",
}  # fmt: skip


def arithmetic(module: Module) -> Iterator[str]:
    """Operators and calls that compute with tensors."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, OPERATORS):
            yield f"{module.at(node.lineno)}: `{ast.unparse(node)}`"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
            yield f"{module.at(node.lineno)}: `{ast.unparse(node)}`"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.rstrip("_") in CALLS:
            yield f"{module.at(node.lineno)}: `{ast.unparse(node.func)}`"


def test_adapters_compute_nothing() -> None:
    problems = [p for name in ADAPTERS for p in arithmetic(modules()[name])]
    assert not problems, "\n" + "\n".join(problems) + "\nput it into a part"


@pytest.mark.parametrize("text", ["x = a - b", "x = -a", "a *= 2", "x = torch.mul(a, b)", "x = a.exp()", "x = a @ b"])
def test_arithmetic_is_seen(text: str) -> None:
    assert list(arithmetic(snippet("harness.conform.losses", text)))
