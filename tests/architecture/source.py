"""The project's own source as data: modules, what they import and where, how long things are."""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("harness", "algorithms", "tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import statement, or `importlib.import_module("...")` with a literal name."""

    target: str  # dotted name; for `from a import b` it is a.b where that is a module of ours, else a
    line: int
    lazy: bool  # inside a function, so it runs only when that is called
    typing_only: bool  # under `if TYPE_CHECKING:`
    optional: bool  # inside `try: ... except ImportError:`


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file."""

    name: str  # dotted; a package stands for its __init__.py
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    def at(self, line: int) -> str:
        """Where to look, clickable in most terminals."""
        return f"{self.path.relative_to(ROOT)}:{line}"


@cache
def modules() -> dict[str, Module]:
    """Name -> module for everything we ship."""
    paths = {_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
    return {name: parse(name, path.read_text(encoding="utf-8"), path, set(paths)) for name, path in paths.items()}


def parse(name: str, text: str, path: Path, known: set[str]) -> Module:
    """A module from its text; `known` are the names that count as modules of ours."""
    tree = ast.parse(text, filename=str(path))
    return Module(name=name, path=path, tree=tree, imports=tuple(_imports(tree, known)))


def snippet(name: str, text: str) -> Module:
    """A module that exists only in a test of the rules themselves."""
    return parse(name, text, ROOT / (name.replace(".", "/") + ".py"), set(modules()))


def code_lines(path: Path) -> int:
    """Lines with code on them: no blank lines, comments or docstrings."""
    docstrings = _docstring_lines(ast.parse(path.read_text(encoding="utf-8")))
    return len(_token_lines(path) - docstrings)


def functions(module: Module) -> Iterator[tuple[str, int, int]]:
    """(name, line, number of code lines) of every function, decorators left out."""
    used = _token_lines(module.path) - _docstring_lines(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, sum(node.lineno <= line <= (node.end_lineno or 0) for line in used)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, known: set[str]) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool, typing_only: bool, optional: bool) -> Iterator[Import]:
        for target in _targets(node, known):
            line = getattr(node, "lineno", 0)
            yield Import(target=target, line=line, lazy=lazy, typing_only=typing_only, optional=optional)
        for child in ast.iter_child_nodes(node):
            yield from visit(
                child,
                lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
                typing_only
                or (isinstance(node, ast.If) and _mentions(node.test, "TYPE_CHECKING") and child in node.body),
                optional or (isinstance(node, ast.Try) and child in node.body and _catches_import_error(node)),
            )

    return visit(tree, False, False, False)


def _targets(node: ast.AST, known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        return sorted({full if (full := f"{base}.{alias.name}") in known else base for alias in node.names})
    if isinstance(node, ast.Call) and _mentions(node.func, "import_module", "__import__") and node.args:
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return []


def _mentions(node: ast.AST, *names: str) -> bool:
    return (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)


def _catches_import_error(node: ast.Try) -> bool:
    return any(h.type is not None and _mentions(h.type, "ImportError", "ModuleNotFoundError") for h in node.handlers)


def _token_lines(path: Path) -> set[int]:
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type not in ignored]
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines
