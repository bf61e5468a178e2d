"""Chat templates: conversations to tokens, and the markers that a template writes around messages."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from probes.errors import ModelError, reason
from probes.scoring.roles import Markers, Role


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str


Conversation = Sequence[Message]

TEXT: Final = "text"
"""The role of a text that is no message, as completions have it."""

_CONTENT: Final = {"system": "Zebras", "user": "Walnut", "assistant": "Copper"}
"""Words that stand for contents; whatever surrounds them is the template's."""

_TURNS: Final = ("user", "assistant", "user")
_TURNS_AFTER_SYSTEM: Final = ("system", "user", "assistant", "user", "assistant")
"""Sequences of roles that show every marker: at the beginning, after a system message, and between turns."""


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


def find_markers(tokenizer: Any) -> Markers:
    """The tokens that the chat template writes before and after messages.

    Renders conversations of known words, and takes the tokens between two contents. A role's header is what all its
    occurrences share, from the end; the terminator is the special token that follows contents.

    Args:
        tokenizer: Of transformers.

    Returns:
        The markers; empty where the model has no chat template.

    Raises:
        ModelError: The template does not render a conversation of user and assistant.
    """
    if not tokenizer.chat_template:
        return Markers()
    found = _separators(tokenizer, _TURNS)
    headers = _headers(found)
    try:
        with_system = [*found, *_separators(tokenizer, _TURNS_AFTER_SYSTEM)]
    except ModelError:
        with_system = found
    # Where a template writes the system message into the user's turn, its tokens are the user's.
    if _headers(with_system).items() >= headers.items():
        found, headers = with_system, _headers(with_system)
    special = set(tokenizer.all_special_ids)
    terminators = {following for _, _, following in found if following is not None and following in special}
    if len(terminators) > 1:
        # A header that follows a content at once ends it, too.
        terminators -= {header[0] for header in headers.values() if header}
    return Markers(
        headers={role: header for role, header in headers.items() if header and role.upper() in Role.__members__},
        terminator=[terminators.pop()] if len(terminators) == 1 else [],
    )


def _separators(tokenizer: Any, roles: Sequence[str]) -> list[tuple[str, list[int], int | None]]:
    """For each content: its role, the tokens between the content before it and itself, and the token after it."""
    messages = [{"role": role, "content": _CONTENT[role]} for role in roles]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except Exception as error:
        # Templates refuse roles they do not know with errors of their own (jinja2.TemplateError among them).
        raise ModelError(f"The chat template of {tokenizer.name_or_path} cannot be used: {reason(error)}.") from error
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    found: list[tuple[str, list[int], int | None]] = []
    searched, previous = 0, 0
    for role in roles:
        begin = text.find(_CONTENT[role], searched)
        if begin < 0:
            raise ModelError(
                f"The chat template of {tokenizer.name_or_path} does not write {role} messages as they are."
            )
        searched = end = begin + len(_CONTENT[role])
        inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > begin]
        following = ids[inside[-1] + 1] if inside[-1] + 1 < len(ids) else None
        found.append((role, ids[previous : inside[0]], following))
        previous = inside[-1] + 1
    return found


def _headers(found: list[tuple[str, list[int], int | None]]) -> dict[str, list[int]]:
    before: dict[str, list[list[int]]] = {}
    for role, separator, _ in found:
        before.setdefault(role, []).append(separator)
    return {role: _common_suffix(separators) for role, separators in before.items()}


def _common_suffix(sequences: list[list[int]]) -> list[int]:
    width = 0
    shortest = min(len(sequence) for sequence in sequences)
    while width < shortest and len({sequence[-width - 1] for sequence in sequences}) == 1:
        width += 1
    return sequences[0][len(sequences[0]) - width :] if width else []
