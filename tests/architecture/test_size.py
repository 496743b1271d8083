"""Files and functions stay short enough to be read at once (the aims are 300 and 40 lines of code)."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.source import code_lines, functions, modules, snippet

FILE_LINES, FUNCTION_LINES = 400, 60  # lines of code: no blank lines, comments, docstrings


def test_files_are_short() -> None:
    long = {m.at(1): n for m in modules().values() if (n := code_lines(m.path)) > FILE_LINES}
    assert not long, f"over {FILE_LINES} lines of code, split by topic: {long}"


def test_functions_are_short() -> None:
    long = [
        f"{m.at(line)} {name}: {n}" for m in modules().values() for name, line, n in functions(m) if n > FUNCTION_LINES
    ]
    assert not long, f"over {FUNCTION_LINES} lines of code, name a step of it: {long}"


def test_what_counts_as_code(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('"""Two\nlines."""\n\n# comment\ndef f():\n    """Doc."""\n    x = """a\nb"""\n    return x\n')
    module = snippet("harness.x", path.read_text())
    assert code_lines(path) == 4
    assert [n for _, _, n in functions(type(module)(name="x", path=path, tree=module.tree, imports=()))] == [4]
