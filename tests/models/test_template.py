"""Messages to prompt tokens."""

from __future__ import annotations

import pytest

from harness.core.errors import UsageError
from harness.core.spec import TemplateSpec
from harness.core.types import Message
from harness.models.template import encode, render, style_of, template_hash
from harness.models.tiny import tiny_tokenizer

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
QUESTION: list[Message] = [{"role": "user", "content": "8 +3 ?"}]


def chatty() -> object:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_plain_joins_contents() -> None:
    assert render(tiny_tokenizer(), TemplateSpec(), QUESTION) == "8 +3 ?"
    assert render(tiny_tokenizer(), TemplateSpec(system="#"), QUESTION) == "#\n8 +3 ?"
    assert encode(tiny_tokenizer(), TemplateSpec(system="#"), QUESTION) == (21, 8, 12, 20)


def test_auto_is_chat_where_there_is_a_template() -> None:
    assert style_of(tiny_tokenizer(), TemplateSpec()) == "plain"
    assert render(chatty(), TemplateSpec(), QUESTION) == "[user] 8 +3 ?\n[assistant]"  # type: ignore[arg-type]
    assert render(chatty(), TemplateSpec(style="plain"), QUESTION) == "8 +3 ?"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no chat template"):
        render(tiny_tokenizer(), TemplateSpec(style="chat"), QUESTION)


def test_a_system_text_stands_before_the_tasks_own() -> None:
    messages: list[Message] = [{"role": "system", "content": "B"}, *QUESTION]
    text = render(chatty(), TemplateSpec(system="A"), messages)  # type: ignore[arg-type]
    assert text == "[system] A\n\nB\n[user] 8 +3 ?\n[assistant]"


def test_an_end_token_that_the_tokenizer_appends_is_taken_off() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 24)])
    assert tokenizer.encode("8 +3 ?")[-1] == 24
    assert encode(tokenizer, TemplateSpec(), QUESTION) == (8, 12, 20)


def test_words_outside_the_vocabulary_and_empty_prompts_are_refused() -> None:
    for content, expected in (("hello", "cannot encode"), ("", "no tokens")):
        with pytest.raises(UsageError, match=expected):
            encode(tiny_tokenizer(), TemplateSpec(), [{"role": "user", "content": content}])


def test_the_hash_moves_with_everything_that_shapes_a_prompt() -> None:
    plain = tiny_tokenizer()
    other = tiny_tokenizer()
    other.chat_template = CHAT + " "
    hashes = [
        template_hash(plain, TemplateSpec()),
        template_hash(plain, TemplateSpec(system="x")),
        template_hash(plain, TemplateSpec(stop=("x",))),
        template_hash(chatty(), TemplateSpec()),  # type: ignore[arg-type]
        template_hash(other, TemplateSpec()),
    ]
    assert len(set(hashes)) == len(hashes)
    assert template_hash(other, TemplateSpec(style="plain")) == template_hash(plain, TemplateSpec())
