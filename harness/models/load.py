"""Loads a policy by name: `tiny` and its relatives, `smollm2-135m`, a Hugging Face id or a local path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.core.errors import UsageError, near
from harness.core.spec import ModelSpec
from harness.models import tiny_moe
from harness.models.rollout_copy import cast
from harness.models.weights import file_sha256, unique_tensors, weights_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLDSTARTS = Path(__file__).parent / "coldstarts"
NUM_COLDSTARTS: Mapping[str, Mapping[int, int]] = {  # shipped initial weights of the embedded models, by layers
    "tiny": {2: 5},
    "tiny-turns": {2: 1},
    **tiny_moe.COLDSTARTS,
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A policy ready for sampling and training."""

    policy: PreTrainedModel  # in eval mode for good: training must not switch dropout on
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]  # every id that ends a response; the tokenizer's own comes first
    pad_id: int  # never one of eos_ids
    name: str
    sha256: str  # of the weights as loaded (names, dtypes, shapes, bytes)
    parameters: int  # tied ones counted once
    context: int  # positions the model can attend to


def bundled_models() -> list[str]:
    """Names that need neither a path nor a hub."""
    return sorted(_BUNDLED)


def load(spec: ModelSpec, *, seed: int, device: str, dtype: str) -> LoadedModel:
    """The model named by `spec`; `seed` picks the cold start of an embedded one, modulo their number.

    UsageError where it cannot be.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r}", "not a training dtype", f"one of: {', '.join(_DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}", "torch sees no CUDA device here", "device cpu")
    require_dtype(_DTYPES[dtype], device)
    if spec.name in _BUNDLED:
        policy, tokenizer = _BUNDLED[spec.name](spec, seed, _DTYPES[dtype])
    else:
        from harness.models.pretrained import load_pretrained

        _check_params(spec, ("revision",))
        hint = near(spec.name, [*_BUNDLED, "a Hugging Face id", "a local path"])
        policy, tokenizer = load_pretrained(spec.name, _DTYPES[dtype], spec.params.get("revision"), hint)
    policy = policy.to(device=device).eval()
    eos_ids = end_ids(policy, tokenizer)
    return LoadedModel(
        policy=policy,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=padding_id(tokenizer, eos_ids),
        name=spec.name,
        sha256=weights_sha256(unique_tensors(policy)),
        parameters=sum(p.numel() for p in policy.parameters()),
        context=context_length(policy, tokenizer),
    )


def require_dtype(dtype: torch.dtype, device: str) -> None:
    """UsageError where the device has no products, attention or gradients in a precision."""
    name = str(dtype).removeprefix("torch.")
    why = None
    if device.startswith("cuda") and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        why = "this GPU has no bfloat16 of its own, and emulated it is slower than float32"
    else:
        try:
            x = torch.ones(1, 2, 8, 8, device=device).to(dtype).requires_grad_()
            out = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True) @ x
            out.softmax(-1).sum().backward()
        except (RuntimeError, NotImplementedError) as error:
            why = f"torch has no such products there: {str(error).splitlines()[0]}"
    if why is not None:
        raise UsageError(f"{name} on {device}", why, "float32, or another device")


def pinned(spec: ModelSpec, seed: int) -> ModelSpec:
    """The model whose initial weights are those that `seed` chooses, whatever the seed of the run."""
    if spec.name not in NUM_COLDSTARTS or "coldstart" in spec.params:
        return spec
    count = NUM_COLDSTARTS[spec.name][_layers(spec)]
    return spec.model_copy(update={"params": {**spec.params, "coldstart": seed % count}})


def parameters_of(name: str) -> str:
    """The parameters of a bundled model, with their values, the default first."""
    starts = {
        n: "coldstart 0" + (f"..{count - 1}" if count > 1 else "") for n, count in NUM_COLDSTARTS.get(name, {}).items()
    }
    if name in tiny_moe.MIXTURES:
        return "layers " + ", ".join(f"{n} ({values})" for n, values in starts.items())
    return "".join(starts.values())


def end_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All end-of-sequence ids: the tokenizer's, the generation config's (may be a list), the config's."""
    generation = getattr(policy, "generation_config", None)
    sources = (
        tokenizer.eos_token_id,
        getattr(generation, "eos_token_id", None),
        getattr(policy.config, "eos_token_id", None),
    )
    found: dict[int, None] = {}
    for source in sources:
        ids = source if isinstance(source, (list, tuple)) else [source]
        found.update(dict.fromkeys(int(i) for i in ids if i is not None))
    if not found:
        raise UsageError(
            "a model without an end-of-sequence token",
            "no response could ever end by itself",
            "a tokenizer with eos_token, or eos_token_id in generation_config.json",
        )
    return tuple(found)


def padding_id(tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> int:
    """The padding id, or, where padding and end share one, another id that ends nothing (padding is always masked)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if candidate is not None and candidate not in eos_ids:
            return int(candidate)
    return next(i for i in range(len(eos_ids) + 1) if i not in eos_ids)


def context_length(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of positions: the config's, else the tokenizer's, else 2048."""
    limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        return limit
    return tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else 2048


def verified_coldstart(name: str, number: int, folder: Path = COLDSTARTS) -> Path:
    """The weight file of a cold start, after its hash was compared with `coldstarts.json`."""
    path, index = folder / f"{name}-{number}.safetensors", folder / "coldstarts.json"
    again = "a fresh installation, or regenerate all of them with `python -m harness.models.coldstart`"
    if not path.exists() or not index.exists():
        raise UsageError(f"model {name}, cold start {number}", f"{path} or its index is missing", again)
    expected = json.loads(index.read_text(encoding="utf-8"))["coldstarts"][f"{name}-{number}"]["sha256"]
    actual = file_sha256(path)
    if actual != expected:
        raise UsageError(
            f"model {name}, cold start {number}: {path}",
            f"its sha256 is {actual[:16]}..., coldstarts.json says {expected[:16]}...: the file was changed or cut",
            again,
        )
    return path


def _check_params(spec: ModelSpec, known: tuple[str, ...]) -> None:
    for name in spec.params:
        if name not in known:
            valid = near(name, known) if known else "no parameters"
            raise UsageError(f"model {spec.name}: parameter {name}", "no such parameter of this model", valid)


def _load_tiny(spec: ModelSpec, seed: int, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from safetensors.torch import load_file

    from harness.models.tiny import tiny_model, tiny_tokenizer

    layers = _layers(spec)
    mixture = spec.name in tiny_moe.MIXTURES
    _check_params(spec, ("coldstart", "layers") if mixture else ("coldstart",))
    count = NUM_COLDSTARTS[spec.name][layers]
    number = spec.params.get("coldstart", seed % count)
    if number not in range(count):
        raise UsageError(f"model {spec.name}: coldstart={number!r}", "no such cold start", f"0 to {count - 1}")
    policy = tiny_moe.tiny_moe_model(spec.name, layers) if mixture else tiny_model()
    family = tiny_moe.coldstart_family(spec.name, layers) if mixture else spec.name
    missing, unexpected = policy.load_state_dict(load_file(verified_coldstart(family, int(number))), strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"], ["model.embed_tokens.weight"])  # the head is tied to the embedding
    cast(policy, policy.dtype, dtype)
    return policy, tiny_tokenizer()


def _layers(spec: ModelSpec) -> int:
    """Depth of an embedded model, of which there are cold starts."""
    shipped = NUM_COLDSTARTS[spec.name]
    layers = spec.params.get("layers", next(iter(shipped))) if spec.name in tiny_moe.MIXTURES else next(iter(shipped))
    if layers not in list(shipped):
        depths = ", ".join(map(str, shipped))
        raise UsageError(f"model {spec.name}: layers={layers!r}", "no cold start has this depth", f"one of: {depths}")
    return int(layers)


def _load_smollm2(spec: ModelSpec, seed: int, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from harness.models.pretrained import load_pretrained
    from harness.models.smollm2 import converted

    _check_params(spec, ())
    return load_pretrained(str(converted()), dtype)


_BUNDLED: Mapping[str, Callable[[ModelSpec, int, torch.dtype], Any]] = {
    **dict.fromkeys(NUM_COLDSTARTS, _load_tiny),
    "smollm2-135m": _load_smollm2,
}
