"""How messages become prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from harness.core.errors import UsageError
from harness.core.spec import TemplateSpec, stable_hash
from harness.core.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "(what the assistant said)"  # stands for a turn whose tokens are known


def style_of(tokenizer: PreTrainedTokenizerBase, template: TemplateSpec) -> Literal["chat", "plain"]:
    """The style in force: `auto` is chat where the tokenizer has a chat template."""
    has_template = bool(tokenizer.chat_template)
    if template.style == "chat" and not has_template:
        raise UsageError("template style chat", "this model's tokenizer has no chat template", "style plain or auto")
    return "chat" if has_template and template.style != "plain" else "plain"


def render(tokenizer: PreTrainedTokenizerBase, template: TemplateSpec, messages: Sequence[Message]) -> str:
    """The prompt text. chat: the tokenizer's template up to the assistant's turn; plain: contents joined by newlines.

    `template.system` stands in front of a system message the task may have.
    """
    turns = _with_system(template.system, messages)
    if style_of(tokenizer, template) == "plain":
        return "\n".join(turn["content"] for turn in turns)
    text = tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True)
    return str(text)


def encode(tokenizer: PreTrainedTokenizerBase, template: TemplateSpec, messages: Sequence[Message]) -> tuple[int, ...]:
    """The prompt's token ids: special tokens as the template writes them (chat) or as the tokenizer adds them (plain).

    An end token that the tokenizer appends by itself is taken off: the response has not begun yet.
    """
    plain = style_of(tokenizer, template) == "plain"
    text = render(tokenizer, template, messages)
    try:
        ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=plain)]
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UsageError(
            f"prompt {text[:60]!r}",
            f"this model's tokenizer cannot encode it ({error})",
            "a task in the model's vocabulary; `tiny` knows only the words of `chain`",
        ) from error
    if plain and ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    if not ids:
        raise UsageError(f"prompt {text[:60]!r}", "it has no tokens", "a task whose prompts are not empty")
    return tuple(ids)


def encode_reply(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateSpec,
    messages: Sequence[Message],
    reply: Sequence[Message],
    last: int,
) -> tuple[int, ...]:
    """The tokens between a turn of the policy that ended with token `last` and its next turn.

    chat: what the template writes after an assistant's message, without the end token that the policy wrote itself.
    plain: the contents on lines of their own. The policy's tokens are never encoded again.
    """
    if style_of(tokenizer, template) == "plain":
        text = "".join(["\n", *(f"{turn['content']}\n" for turn in reply)])
    else:
        turns = [*_with_system(template.system, messages), {"role": "assistant", "content": _ANSWER}, *reply]
        whole = tokenizer.apply_chat_template([dict(t) for t in turns], tokenize=False, add_generation_prompt=True)
        _, mark, text = str(whole).rpartition(_ANSWER)
        if not mark:
            raise UsageError(
                "a task of several turns with this chat template",
                "the template leaves out what the assistant said in an earlier turn",
                "--template plain",
            )
        end = str(tokenizer.decode([last]))
        text = text.removeprefix(end) if last in tokenizer.all_special_ids else text
    ids = tuple(int(i) for i in tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise UsageError(f"reply {list(reply)!r}", "it has no tokens, so two turns would be one", "a reply with a text")
    return ids


def template_hash(tokenizer: PreTrainedTokenizerBase, template: TemplateSpec) -> str:
    """sha256 of everything that shapes a prompt: style in force, chat template, system text, stop strings."""
    style = style_of(tokenizer, template)
    source = tokenizer.chat_template if style == "chat" else None
    return stable_hash({"style": style, "chat": source, "system": template.system, "stop": list(template.stop)})


def _with_system(system: str | None, messages: Sequence[Message]) -> list[Message]:
    if system is None:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]
