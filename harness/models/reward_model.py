"""A sequence classifier as reward: `--reward model:<id or path>`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.core.errors import UsageError
from harness.core.ports import Response, Scored, Scorer
from harness.core.types import Message
from harness.models.pretrained import locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OPTIONS = ("reward_batch", "reward_output", "reward_label", "reward_range", "reward_device", "reward_revision")
Output = Literal["probability", "logit"]
_INSTEAD = "a folder or an id of a model for sequence classification"


class RewardModel(Scorer):
    """Scores conversations in batches of similar length.

    `probability`: sigmoid of a single output, or the softmax probability of `label` (the last one by default), in
    [0, 1]. `logit`: the raw output, in the range that the user declares. The weights are read at the first score, in
    the process of the run, so that their memory and time are the run's. A conversation longer than the model's context
    has no score.
    """

    def __init__(
        self, name: str, *, batch: int, output: Output, label: int | None, reward_range: tuple[float, float],
        device: str, revision: str | None,
    ) -> None:  # fmt: skip
        from transformers import AutoConfig

        self._source, where = locate(name, _INSTEAD)
        self._where: dict[str, Any] = {**where, "revision": revision}
        try:
            config = AutoConfig.from_pretrained(self._source, **self._where)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"reward model:{name}", f"it cannot be read: {str(error)[:200]}", _INSTEAD) from None
        built = config.architectures or []
        if not any(x.endswith("ForSequenceClassification") for x in built):
            found = ", ".join(built) or "model without a head"
            raise UsageError(f"reward model:{name}", f"its checkpoint is a {found}", _INSTEAD)
        labels = int(config.num_labels)
        if label is not None and not 0 <= label < labels:
            raise UsageError(f"reward_label={label}", f"the model has {labels} labels", f"0 to {labels - 1}")
        self._label = labels - 1 if label is None else label
        self._single = labels == 1
        self._batch, self._output, self._device = batch, output, device
        self.reward_range = reward_range
        self.name = f"model {Path(name).name}"
        self.sha256 = _identity(name, self._source, revision, output, self._label)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self._source, **self._where)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(self._source, **self._where)
        model = model.to(self._device).eval().requires_grad_(False)
        if model.config.pad_token_id is None:  # the classifier reads a row's last token that is not padding
            model.config.pad_token_id = tokenizer.pad_token_id
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return model, tokenizer, int(limit or tokenizer.model_max_length)

    def score(self, responses: Sequence[Response]) -> list[Scored]:
        _, tokenizer, limit = self._loaded
        ids = [_encoded(tokenizer, r) for r in responses]
        found: list[Scored] = [Scored(value=None, why=f"longer than the reward model's {limit} tokens")] * len(ids)
        order = sorted((i for i, line in enumerate(ids) if len(line) <= limit), key=lambda i: len(ids[i]))
        for first in range(0, len(order), self._batch):
            chunk = order[first : first + self._batch]
            for i, value in zip(chunk, self._values([ids[i] for i in chunk]), strict=True):
                found[i] = Scored(value=value)
        return found

    @torch.no_grad()
    def _values(self, lines: Sequence[Sequence[int]]) -> list[float]:
        model, tokenizer, _ = self._loaded
        pad, width = tokenizer.pad_token_id or 0, max(len(line) for line in lines)
        ids = torch.tensor([[*line, *(pad,) * (width - len(line))] for line in lines], device=self._device)
        real = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in lines], device=self._device)
        logits = model(input_ids=ids, attention_mask=real).logits.float()
        if self._output == "logit":
            return [float(x) for x in logits[:, self._label]]
        chosen = logits[:, 0].sigmoid() if self._single else logits.softmax(-1)[:, self._label]
        return [float(x) for x in chosen]


def _encoded(tokenizer: PreTrainedTokenizerBase, response: Response) -> list[int]:
    """The conversation as the reward model's own chat template writes it, else the texts on lines of their own."""
    answer: Message = {"role": "assistant", "content": response.text}
    turns = [*response.prompt.messages, answer]
    if tokenizer.chat_template:
        text = str(tokenizer.apply_chat_template([dict(t) for t in turns], tokenize=False))
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    return [int(i) for i in tokenizer.encode("\n".join(t["content"] for t in turns))]


def _identity(name: str, source: str, revision: str | None, *how: object) -> str:
    """Content of a local folder, id and revision of a model from the hub, and how its output is read."""
    digest = hashlib.sha256(repr(how).encode())
    folder = Path(source)
    if not folder.is_dir():
        digest.update(f"{name}@{revision}".encode())
        return digest.hexdigest()
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".model", ".txt")):
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def reward_model(name: str, **options: Any) -> RewardModel:
    """The classifier of that name; what cannot work is refused before anything runs, its weights are read later."""
    for key in options:
        if key not in OPTIONS:
            raise UsageError(f"{key} with --reward model:{name}", "this kind of reward does not read it",
                             f"one of: {', '.join(OPTIONS)}")  # fmt: skip
    output = options.get("reward_output", "probability")
    if output not in ("probability", "logit"):
        raise UsageError(f"reward_output={output!r}", "no such output", "probability or logit")
    if (output == "logit") != ("reward_range" in options):
        raise UsageError(
            f"reward_output={output} {'without' if output == 'logit' else 'with'} reward_range",
            "a probability lies in [0, 1], and a logit in a range that only its model knows",
            "-t reward_output=logit -t reward_range=-10,10, or neither",
        )
    batch = options.get("reward_batch", 32)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UsageError(f"reward_batch={batch!r}", "not a number of responses", "e.g. -t reward_batch=32")
    label = options.get("reward_label")
    if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
        raise UsageError(f"reward_label={label!r}", "not the number of a label", "e.g. -t reward_label=1")
    device = str(options.get("reward_device", "cuda" if torch.cuda.is_available() else "cpu"))
    return RewardModel(
        name, batch=batch, output=output, label=label, reward_range=_range(options.get("reward_range", (0.0, 1.0))),
        device=device, revision=options.get("reward_revision"),
    )  # fmt: skip


def _range(given: Any) -> tuple[float, float]:
    parts = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else [given]
    try:
        low, high = (float(x) for x in parts)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise UsageError(f"reward_range={given!r}", "not two rising numbers", "e.g. -t reward_range=-10,10")
    return low, high
