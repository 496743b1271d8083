"""What can be told about model and task before any run starts: whether the prompts can be encoded at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.ports import Task
from harness.core.spec import ModelSpec, RunSpec, StudySpec
from harness.models.load import NUM_COLDSTARTS
from harness.models.template import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PROMPTS_LOOKED_AT = 8


def check_prompt(spec: StudySpec, task: Task) -> None:
    """Encodes the first item of every split; UsageError where the tokenizer or its template cannot."""
    tokenizer = tokenizer_of(spec.model)
    for split in ("train", "validation", "test"):
        encode(tokenizer, spec.task.template, task.item(split, 0).messages)


def longest_response(spec: RunSpec, task: Task) -> int | None:
    """Response tokens for which the first items of the task leave room; None where the config does not say."""
    tokenizer = tokenizer_of(spec.model)
    prompts = (task.item(split, i) for split in ("train", "validation") for i in range(PROMPTS_LOOKED_AT))
    prompt = max(len(encode(tokenizer, spec.task.template, p.messages)) for p in prompts)
    limit = context_of(spec.model)
    return None if limit is None else limit - prompt


def context_of(model: ModelSpec) -> int | None:
    """Positions the model can attend to; None where its config does not say."""
    if model.name in NUM_COLDSTARTS:
        from harness.models.tiny import CONTEXT

        return CONTEXT
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place_of(model), revision=model.params.get("revision", "main"))
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def place_of(model: ModelSpec) -> str:
    """Where transformers finds a model that is not the embedded one."""
    from harness.models.smollm2 import converted

    return str(converted()) if model.name == "smollm2-135m" else model.name


def tokenizer_of(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without the weights."""
    if model.name in NUM_COLDSTARTS:
        from harness.models.tiny import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        place_of(model), revision=model.params.get("revision", "main")
    )
    return found
