"""What can be told about model and task before any run starts: whether the prompts can be encoded at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.ports import Task
from harness.core.spec import ModelSpec, StudySpec
from harness.models.template import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_prompt(spec: StudySpec, task: Task) -> None:
    """Encodes the first item of every split; UsageError where the tokenizer or its template cannot."""
    tokenizer = tokenizer_of(spec.model)
    for split in ("train", "validation", "test"):
        encode(tokenizer, spec.task.template, task.item(split, 0).messages)


def tokenizer_of(model: ModelSpec) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without the weights."""
    if model.name == "tiny":
        from harness.models.tiny import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    from harness.models.smollm2 import converted

    place = str(converted()) if model.name == "smollm2-135m" else model.name
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, revision=model.params.get("revision", "main"))
    return found
