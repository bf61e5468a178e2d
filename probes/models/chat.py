"""Chat templates: conversations to tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from probes.models.rendering import render


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str
    """Its text; the texts of its parts, joined by newlines."""
    more: dict[str, Any] = {}
    """What else the chat API gave, such as ``tool_calls``; and ``content``, where that is more than one string."""

    def given(self) -> dict[str, Any]:
        """As the chat API gave it."""
        return {"role": self.role, "content": self.content, **self.more}


Conversation = Sequence[Message]

TEXT: Final = "text"
"""The role of a text that is no message, as completions have it."""


def encode(tokenizer: Any, conversation: Conversation, *, respond: bool) -> list[int]:
    """A conversation's tokens.

    Args:
        tokenizer: Of transformers. Without a chat template, contents are joined by blank lines.
        conversation: The messages; a single one of role :data:`TEXT` is a bare text, which has no template.
        respond: End with the header of the assistant's answer.
    """
    if not tokenizer.chat_template or [message.role for message in conversation] == [TEXT]:
        return tokenizer("\n\n".join(message.content for message in conversation) + "\n\n" * respond)["input_ids"]
    return encode_chat(tokenizer, conversation, {"add_generation_prompt": respond})


def encode_chat(
    tokenizer: Any, conversation: Conversation, template: Mapping[str, Any], *, special_tokens: bool = False
) -> list[int]:
    """A conversation's tokens, as vLLM's server reads them.

    Args:
        tokenizer: Of transformers, with a chat template.
        conversation: The messages.
        template: What the template is given beside them, see :func:`probes.models.rendering.render`.
        special_tokens: Add those that the tokenizer adds to a text, beside the template's own.
    """
    text = render(tokenizer, [message.given() for message in conversation], template)
    return tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
