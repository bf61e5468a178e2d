"""Chat templates: conversations to tokens."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str


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
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    if not tokenizer.chat_template or [message.role for message in conversation] == [TEXT]:
        return tokenizer("\n\n".join(message.content for message in conversation) + "\n\n" * respond)["input_ids"]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=respond, return_dict=False)
