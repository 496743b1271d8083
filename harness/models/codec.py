"""Text <-> tokens for one model and template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.spec import TemplateSpec
from harness.core.types import Message
from harness.models.template import encode, encode_reply, render, template_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCodec:
    """Renders prompts through the chat template and decodes responses; see `harness.rollout.codec.Codec`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateSpec) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.template_sha256 = template_hash(tokenizer, template)
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.tokenizer_sha256 = hashlib.sha256(repr(vocabulary).encode()).hexdigest()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model sees it."""
        return render(self._tokenizer, self._template, messages)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt tokens."""
        return encode(self._tokenizer, self._template, messages)

    def encode_reply(self, messages: Sequence[Message], reply: Sequence[Message], last: int) -> tuple[int, ...]:
        """Tokens between two turns of the policy, the first of which ended with the token `last`."""
        return encode_reply(self._tokenizer, self._template, messages, reply, last)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as a response would hold them: no template, no special tokens."""
        return tuple(int(i) for i in self._tokenizer.encode(text, add_special_tokens=False))

    def read_back(self, ids: Sequence[int]) -> str:
        """Text of tokens with their special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    @property
    def start_id(self) -> int | None:
        """The token that begins a text, where the tokenizer has one."""
        found = self._tokenizer.bos_token_id
        return found if isinstance(found, int) else None

    def decode(self, ids: Sequence[int]) -> str:
        """Response text without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
