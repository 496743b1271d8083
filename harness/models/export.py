"""A policy as a standard Hugging Face folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import InfrastructureError, UsageError
from harness.core.spec import ModelSpec
from harness.models.load import LoadedModel, load
from harness.models.weights import unique_tensors, weights_sha256

if TYPE_CHECKING:
    from transformers import GenerationConfig

CARD = "README.md"
HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # bundled models that a hub knows too


def check_target(target: Path) -> None:
    """Refuses a folder that would be mixed with what lies in it."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"--hf {target}", "it exists and is not an empty folder", "a new folder")


def save_folder(model: LoadedModel, card: str, target: Path) -> str:
    """Writes config, safetensors, tokenizer with its chat template, generation config and card: all or nothing.

    The folder is read back before it gets its name. Returns the sha256 of its weights.
    """
    check_target(target)
    expected = weights_sha256(unique_tensors(model.policy))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            model.policy.generation_config = generation_config(model)
            model.policy.save_pretrained(work)
            model.tokenizer.save_pretrained(work)
            (work / CARD).write_text(card, encoding="utf-8")
            dtype = str(model.policy.dtype).removeprefix("torch.")
            found = load(ModelSpec(name=str(work)), seed=0, device="cpu", dtype=dtype)
            if (found.sha256, found.eos_ids) != (expected, model.eos_ids):
                raise InfrastructureError(f"{target}: what was written does not read back as the same model")
            os.chmod(work, 0o755)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise InfrastructureError(f"cannot write {target}: {error}; free space or name another folder") from error
    return expected


def generation_config(model: LoadedModel) -> GenerationConfig:
    """The model's own with every id that ended a response in training; libraries differ in where they look for them."""
    from transformers import GenerationConfig

    known = getattr(model.policy, "generation_config", None)
    config = GenerationConfig.from_dict(known.to_dict()) if known is not None else GenerationConfig()
    config.eos_token_id = list(model.eos_ids) if len(model.eos_ids) > 1 else model.eos_ids[0]
    if config.pad_token_id is None:
        config.pad_token_id = model.tokenizer.pad_token_id
    config._from_model_config = False  # or loading would derive it from config.json again
    return config


def hub_id(name: str) -> str | None:
    """The id under which a hub knows a model, for the card; None for the embedded model and for local folders."""
    if name in HUB_IDS:
        return HUB_IDS[name]
    return name if name.count("/") == 1 and not Path(name).expanduser().exists() and name[0] not in "./~" else None
