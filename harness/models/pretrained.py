"""Pretrained causal language models from a local folder, the local hub cache or the hub, in that order."""

from __future__ import annotations

import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError

from harness.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What transformers raises for a folder or an id it cannot make a model of; RuntimeError is a mismatch of shapes.
_UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
_INSTEAD = "a decoder-only model with a language-model head, e.g. a Qwen, Llama or SmolLM checkpoint"


def load_pretrained(
    name: str, dtype: torch.dtype, revision: str | None = None, hint: str = _INSTEAD
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (attention sdpa where it has it) and tokenizer; every reason why not is a UsageError."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    source, where = locate(name, hint)
    where["revision"] = revision
    config = _reading(name, hint, lambda **at: AutoConfig.from_pretrained(source, **at), where)
    check_causal(name, config)
    tokenizer = _reading(name, hint, lambda **at: AutoTokenizer.from_pretrained(source, **at), where)
    read = partial(_model, AutoModelForCausalLM, source, dtype=dtype, output_loading_info=True)
    loaded: tuple[PreTrainedModel, dict[str, Any]] = _reading(name, hint, read, where)
    policy, loading = loaded
    if loading["missing_keys"]:
        some = ", ".join(sorted(loading["missing_keys"])[:3])
        raise UsageError(
            f"model {name!r}", f"its checkpoint lacks weights that would be random: {some}", "a complete checkpoint"
        )
    rows = policy.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"model {name!r}",
            f"its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows",
            "the tokenizer that belongs to the model",
        )
    return policy, tokenizer


def locate(name: str, hint: str = _INSTEAD) -> tuple[str, dict[str, Any]]:
    """A local folder or a hub id, and how to read it."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path), {"local_files_only": True}
        if (path / "adapter_config.json").is_file():
            raise UsageError(f"model {name!r}", "the folder holds an adapter, no model", "merge it into its base model")
        raise UsageError(f"model {name!r}", "the folder has no config.json", "a folder written by save_pretrained")
    if path.exists():
        raise UsageError(f"model {name!r}", "this is a file", "the folder that save_pretrained wrote")
    if name.startswith(("/", "./", "../", "~")):
        raise UsageError(f"model {name!r}", "no such folder", "an existing folder, or a Hugging Face id without ./")
    if not _HUB_ID.fullmatch(name):
        raise UsageError(f"model {name!r}", "neither a folder nor a Hugging Face id (owner/name)", hint)
    return name, {}


def check_causal(name: str, config: Any) -> None:
    """Refuses encoder-decoders, encoders and models without a language-model head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"model {name!r}", f"{config.model_type} is an encoder-decoder model", _INSTEAD)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"model {name!r}", f"{config.model_type} is not a causal language model", _INSTEAD)
    built = config.architectures or []
    if built and not any(x.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for x in built):
        raise UsageError(f"model {name!r}", f"its checkpoint is a {built[0]}, not a causal language model", _INSTEAD)


def _model(auto: Any, source: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(source, attn_implementation="sdpa", **options)
    except (ValueError, ImportError) as error:
        if "attention" not in str(error):
            raise
        return auto.from_pretrained(source, attn_implementation="eager", **options)


def hub_reachable() -> bool:
    """Whether asking the hub can succeed at all; without a network its client would retry for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if getproxies():
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def _reading(name: str, hint: str, read: Any, where: dict[str, Any]) -> Any:
    """Runs a reader, first without the network; what the libraries raise becomes a UsageError."""
    try:
        return read(**{**where, "local_files_only": True})
    except _UNREADABLE as first:
        error: Exception = first
    local = bool(where.get("local_files_only"))
    if not local and hub_reachable():
        try:
            return read(**where)
        except _UNREADABLE as second:
            error = second
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if local:
        raise UsageError(f"model {name!r}", f"the folder cannot be read: {reason}", _INSTEAD) from error
    raise UsageError(
        f"model {name!r}",
        f"no such folder, not in the local hub cache, and not delivered by the hub: {reason}",
        f"{hint} Without a network: download it elsewhere (`hf download {name}`) and name the folder.",
    ) from error
